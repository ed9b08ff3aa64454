"""Attention over grids beside full attention with masks made of the tokens' places; rotary positions."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.interop import save_pretrained
from jdiff.models import (
    AxialAttention,
    DiT,
    FullAttention,
    LinearAttention,
    StridedAttention,
    WindowedAttention,
    build,
)
from jdiff.models.attention import kernel
from jdiff.models.embeddings import rotary_angles, rotated
from tests.models.draws import drawn

B, H, W, HEADS, D = 2, 6, 9, 2, 4
TOLERANCE = 1e-10  # in float64
ROW, COLUMN = (place.ravel() for place in np.mgrid[:H, :W])


@pytest.fixture
def float64():
    """Without strict promotion, which JAX's own attention does not know."""
    with jax.enable_x64(True):
        yield


def qkv(dtype=np.float64, shape=(B, H, W, HEADS, D)):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(2 * rng.normal(size=shape), dtype) for _ in range(3))


def masked(q, k, v, allowed):
    """Attention written out token by token; `allowed` [N, N] says which attend to which."""
    q, k, v = (np.asarray(x).reshape(B, H * W, HEADS, D) for x in (q, k, v))
    result = np.empty_like(q)
    for b, i, h in np.ndindex(B, H * W, HEADS):
        weights = np.exp(k[b, allowed[i], h] @ q[b, i, h] / np.sqrt(D))
        result[b, i, h] = weights @ v[b, allowed[i], h] / weights.sum()
    return result.reshape(B, H, W, HEADS, D)


def pairs(relation):
    """[N, N]: the relation of places (row, column) and (other row, other column)."""
    return relation(ROW[:, None], COLUMN[:, None], ROW[None], COLUMN[None])


def same_square(edge, r, c, r2, c2):
    return (r // edge == r2 // edge) & (c // edge == c2 // edge)


def same_remainders(edge, r, c, r2, c2):
    return ((r - r2) % edge == 0) & ((c - c2) % edge == 0)


@pytest.mark.parametrize(
    "mixing, allowed, tolerance",
    [
        (FullAttention(), pairs(lambda r, c, r2, c2: r == r), TOLERANCE),
        (WindowedAttention(window=3), pairs(partial(same_square, 3)), TOLERANCE),
        (WindowedAttention(window=1), np.eye(H * W, dtype=bool), TOLERANCE),
        (StridedAttention(stride=3), pairs(partial(same_square, 3)) | pairs(partial(same_remainders, 3)), TOLERANCE),
        (StridedAttention(stride=1), np.ones((H * W, H * W), bool), TOLERANCE),
    ],
    ids=["full", "windows", "windows of one", "strided", "stride of one"],
)
def test_it_is_full_attention_with_a_mask(mixing, allowed, tolerance, float64):
    q, k, v = qkv()
    allowed = np.broadcast_to(allowed, (H * W, H * W))
    np.testing.assert_allclose(mixing(q, k, v), masked(q, k, v, allowed), rtol=0, atol=tolerance)


def test_axial_attention_is_along_rows_then_along_columns(float64):
    q, k, v = qkv()
    rows = masked(q, k, v, pairs(lambda r, c, r2, c2: (r == r2) & (c == c)))
    both = masked(q, k, rows, pairs(lambda r, c, r2, c2: (c == c2) & (r == r)))
    np.testing.assert_allclose(AxialAttention()(q, k, v), both, rtol=0, atol=TOLERANCE)


def test_linear_attention_is_a_matrix_of_kernels(float64):
    q, k, v = (np.asarray(x).reshape(B, H * W, HEADS, D) for x in qkv())
    features = lambda x: np.where(x > 0, x + 1, np.exp(x))
    weights = np.einsum("bihd,bjhd->bhij", features(q), features(k))
    expected = np.einsum("bhij,bjhd->bihd", weights / weights.sum(axis=-1, keepdims=True), v)
    np.testing.assert_allclose(LinearAttention()(*qkv()), expected.reshape(B, H, W, HEADS, D), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "mixing, power",
    [
        (lambda edge: FullAttention(), 2),
        (lambda edge: WindowedAttention(window=4), 1),
        (lambda edge: StridedAttention(stride={16: 4, 64: 8}[edge]), 1.5),
        (lambda edge: AxialAttention(), 1.5),
        (lambda edge: LinearAttention(), 1),
    ],
    ids=["full", "windowed", "strided", "axial", "linear"],
)
def test_the_work_of_compiled_programs_grows_as_a_power_of_the_tokens(mixing, power):
    def work(edge):
        x = jax.ShapeDtypeStruct((1, edge, edge, 1, 8), jnp.float32)
        return jax.jit(mixing(edge)).lower(x, x, x).compile().cost_analysis()["flops"]

    assert abs(np.log(work(64) / work(16)) / np.log(16) - power) < 0.03


@pytest.mark.parametrize("mixing", [WindowedAttention(window=4), StridedAttention(stride=2)], ids=str)
def test_a_grid_that_does_not_divide_is_refused(mixing):
    name = "window" if isinstance(mixing, WindowedAttention) else "stride"
    with pytest.raises(ValueError, match=rf"{name}: {mixing.divisor} does not divide a grid of 6 x 9 tokens"):
        mixing(*qkv(np.float32))
    with pytest.raises(ValueError, match=f"{name}: 0 is not at least 1"):
        type(mixing)(**{name: 0})
    with pytest.raises(ValueError, match=f"size: 12 is not a positive multiple of {4 * mixing.divisor}"):
        build(DiT(patch_size=4, attention=mixing), size=12, channels=3, num_classes=0)


def test_cudnn_is_for_half_precision_on_gpus():
    assert kernel("gpu", jnp.bfloat16, 72) == "cudnn"
    others = [("cpu", jnp.bfloat16, 64), ("tpu", jnp.bfloat16, 64), ("gpu", jnp.float32, 64)]
    others += [("gpu", jnp.bfloat16, 512), ("gpu", jnp.bfloat16, 4)]
    assert {kernel(*case) for case in others} == {"xla"}


SMALL = DiT(patch_size=2, num_layers=1, num_attention_heads=2, attention_head_dim=8)


@pytest.mark.parametrize(
    "mixing, seen",
    # What the last row of patches in the left half of the image sees of the first row.
    [(WindowedAttention(window=2), False), (AxialAttention(), True), (LinearAttention(), True)],
    ids=str,
)
def test_a_dit_mixes_as_its_config_says(mixing, seen):
    network = build(dataclasses.replace(SMALL, attention=mixing), size=8, channels=1, num_classes=0)
    params = drawn(network)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
    slope = jax.grad(lambda x: network.apply(params, x, jnp.zeros(1), {})[0, 7, 0, 0])(x)[0, :, :, 0]
    assert jnp.abs(slope[4:, :4]).min() > 0
    assert (jnp.abs(slope[:4]).max() > 1e-7) == seen


def test_rotary_inner_products_know_offsets_alone(float64):
    height, width, d = 5, 7, 12
    angles = rotary_angles(height, width, d, period=100.0)
    q, k = (jnp.asarray(np.random.default_rng(i).normal(size=(1, 1, 1, 1, d))) for i in range(2))
    everywhere = lambda x: rotated(jnp.broadcast_to(x, (1, height, width, 1, d)), angles)[0, :, :, 0]
    products = np.einsum("rcd,sed->rcse", everywhere(q), everywhere(k))
    by_offset = {}
    for r, c, r2, c2 in np.ndindex(*products.shape):
        by_offset.setdefault((r - r2, c - c2), []).append(products[r, c, r2, c2])
    assert max(np.ptp(values) for values in by_offset.values()) < 1e-12
    means = np.array([values[0] for values in by_offset.values()])
    assert np.abs(means[:, None] - means)[~np.eye(len(means), dtype=bool)].min() > 1e-6
    np.testing.assert_allclose(jnp.linalg.norm(everywhere(q), axis=-1), jnp.linalg.norm(q), rtol=1e-14)
    np.testing.assert_allclose(by_offset[0, 0][0], jnp.vdot(q, k), rtol=1e-12)


def test_a_dit_with_rotary_positions_knows_rows_from_columns():
    """Transposing the image does not transpose the output, and no positions are added to the tokens."""
    network = build(dataclasses.replace(SMALL, positions="rope"), size=8, channels=1, num_classes=0)
    params = drawn(network)
    apply = jax.jit(lambda x: network.apply(params, x, jnp.zeros(1), {}))
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
    patches = lambda x: x.reshape(1, 4, 2, 4, 2, 1)
    swapped = lambda x: patches(x).swapaxes(1, 3).reshape(x.shape)
    assert jnp.abs(apply(swapped(x)) - swapped(apply(x))).max() > 1e-3
    same = jnp.tile(x[:, :2, :2], (1, 4, 4, 1))
    np.testing.assert_allclose(apply(same)[:, 6:, 4:6], apply(same)[:, :2, :2], atol=1e-5)


@pytest.mark.parametrize("change", [{"attention": AxialAttention()}, {"positions": "rope"}], ids=str)
def test_what_diffusers_has_not_is_not_saved_as_its_class(change, tmp_path):
    (field,) = change
    with pytest.raises(ValueError, match=rf"DiTTransformer2DModel has no {field}="):
        save_pretrained(tmp_path, dataclasses.replace(SMALL, **change), {})
    assert not list(tmp_path.iterdir())


def test_impossible_positions_are_refused():
    with pytest.raises(ValueError, match="positions: 'learned' is not sincos or rope"):
        DiT(positions="learned")
    with pytest.raises(ValueError, match="attention_head_dim: 6 is not a multiple of 4"):
        DiT(positions="rope", num_attention_heads=2, attention_head_dim=6)
