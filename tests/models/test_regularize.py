"""Dropout and stochastic depth: means stay, shares are those asked for, and each example is its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jdiff.models import Compute, DiT, JiT, Regularization, SongUNet, UNet, UNet2D, build, functional
from jdiff.models.convolution import ResnetBlock
from jdiff.models.keys import Keys
from jdiff.models.regularize import dropout, stochastic_depth
from tests.models.draws import drawn

N = 20000
KEYS = jax.random.split(jax.random.key(0), N)
RATE = 0.3
LIMIT = 5 * np.sqrt(RATE * (1 - RATE) / N)  # five standard deviations of a share


@pytest.mark.parametrize("leave_out, together", [(dropout, False), (stochastic_depth, True)])
def test_a_share_is_left_out_and_means_stay(leave_out, together):
    x = jnp.array([1.0, -2.0, 3.0])
    y = np.asarray(leave_out(KEYS, jnp.broadcast_to(x, (N, 3)), RATE))
    gone = y == 0
    np.testing.assert_allclose(y, np.where(gone, 0, np.asarray(x) / (1 - RATE)), rtol=1e-6)
    assert np.abs(gone.mean(axis=0) - RATE).max() < LIMIT
    both = (gone[:, 0] & gone[:, 1]).mean()
    assert abs(both - (RATE if together else RATE**2)) < LIMIT
    np.testing.assert_array_equal(leave_out(KEYS[5:6], x[None], RATE)[0], y[5])


def test_later_blocks_are_left_out_more_often():
    """And a branch independently of the other: 1/3, 2/3 and all of the share of the last block."""
    regularization = Regularization(keys=KEYS, depth=0.6)
    gone = [
        [np.asarray(regularization.branch(jnp.ones((N, 1)), jnp.int32(block), 3, i) == 0)[:, 0] for i in range(2)]
        for block in range(3)
    ]
    np.testing.assert_allclose(np.mean(gone, axis=-1), np.array([[0.2], [0.4], [0.6]]) * np.ones(2), atol=LIMIT * 1.1)
    assert abs(np.mean(gone[2][0] & gone[2][1]) - 0.36) < LIMIT * 1.1


CONFIG = DiT(patch_size=4, num_layers=2, num_attention_heads=2, attention_head_dim=8)
X = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))


def applied(config, keys=None, **shares):
    other = isinstance(config, UNet2D)
    network = functional(config.module) if other else build(config, size=8, channels=1, num_classes=0)

    @jax.jit
    def apply(params, x, keys):
        regularization = None if keys is None else Regularization(keys=keys, **shares)
        return network.apply(params, x, jnp.zeros(len(x)), {}, regularization=regularization)

    return lambda x, keys=keys: apply(drawn(network), x, keys)


@pytest.mark.parametrize("shares", [{"dropout": 0.4}, {"depth": 0.6}], ids=str)
def test_a_dit_is_trained_with_what_is_left(shares):
    keys = KEYS[:4]
    plain, run = applied(CONFIG)(X), applied(CONFIG, keys, **shares)
    y = run(X)
    assert jnp.abs(y - plain).max() > 1e-2 and jnp.abs(run(X, KEYS[4:8]) - y).max() > 1e-2
    np.testing.assert_allclose(run(X[1:3], keys[1:3]), y[1:3], atol=1e-5)
    unrolled = dataclasses.replace(CONFIG, compute=Compute(scan=False, remat="full"))
    np.testing.assert_allclose(applied(unrolled, keys, **shares)(X), y, atol=1e-5)


UNETS = {
    "unet": UNet(channels=8, multipliers=(1, 2), blocks=(1, 1), attention=(), heads=1, patch=1),
    "unet_2d": UNet2D(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
        add_attention=False,
    ),
    "song": SongUNet(model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(), channel_mult_emb=1),
}
OTHERS = UNETS | {"jit": JiT(patch_size=4, num_layers=2, num_attention_heads=1, attention_head_dim=8, context_start=1)}


@pytest.mark.parametrize("shares", [{"dropout": 0.4}, {"depth": 0.6}], ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_trained_with_what_is_left(name, shares):
    """Each example by itself; rematerialized, what is left out is the same."""
    run = applied(OTHERS[name], KEYS[:4], **shares)
    y, other = run(X), run(X, KEYS[4:8])
    assert jnp.abs(other - y).max() > 1e-2
    np.testing.assert_allclose(run(X[::-1], KEYS[:4][::-1])[::-1], y, atol=1e-5 * float(jnp.abs(y).max()))
    if name == "song":
        full = dataclasses.replace(OTHERS[name], compute=Compute(remat="full"))
        np.testing.assert_allclose(applied(full, KEYS[:4], **shares)(X), y, atol=1e-5 * float(jnp.abs(y).max()))


@pytest.mark.parametrize("name", UNETS)
def test_no_share_leaves_the_same_program(name):
    """And so the same bits."""
    config, keys = UNETS[name], KEYS[:4]
    network = functional(config.module) if name == "unet_2d" else build(config, size=8, channels=1, num_classes=0)
    params = jax.eval_shape(network.init, jax.random.key(0))

    def program(**options):
        return str(jax.make_jaxpr(lambda params: network.apply(params, X, jnp.zeros(4), {}, **options))(params))

    assert program(regularization=Regularization(keys=keys)) == program()
    assert program(regularization=Regularization(keys=keys, dropout=0.1)) != program()


def test_dropout_lies_before_the_second_convolution():
    """The block is linear in what it leaves out: its mean over keys is the block itself, and pixels differ."""
    block = functional(lambda rngs: ResnetBlock(4, 4, Compute(), embedding_width=None, groups=1, eps=1e-6, rngs=rngs))
    params, x, n = drawn(block, scale=0.5), jax.random.normal(jax.random.key(2), (1, 2, 2, 4)), N // 2

    @jax.jit
    def run(params, keys):
        many = jnp.broadcast_to(x, (n, 2, 2, 4))
        return block.apply(params, many, regularization=Regularization(keys=keys, dropout=RATE))

    y, plain = np.asarray(run(params, KEYS[:n])), np.asarray(block.apply(params, x))[0]
    deviation = y.std(axis=0) / np.sqrt(n)
    assert (np.abs(y.mean(axis=0) - plain) < 5 * deviation).all() and (deviation > 1e-4).all()
    # What passes by is never left out; of the branch, a share may be.
    silent = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(run(silent, KEYS[:n]), jnp.broadcast_to(x, (n, 2, 2, 4)))


def test_stochastic_depth_leaves_out_the_branch_of_a_residual_block():
    block = functional(lambda rngs: ResnetBlock(4, 4, Compute(), embedding_width=None, groups=1, eps=1e-6, rngs=rngs))
    params, x, n = drawn(block, scale=0.5), jax.random.normal(jax.random.key(2), (1, 2, 2, 4)), 1000
    run = jax.jit(lambda x, keys: block.apply(params, x, regularization=Regularization(keys=keys, depth=RATE)))
    y = np.asarray(run(jnp.broadcast_to(x, (n, 2, 2, 4)), KEYS[:n]))
    passed_by = (y == np.asarray(x)).all(axis=(1, 2, 3))
    assert abs(passed_by.mean() - RATE) < 5 * np.sqrt(RATE * (1 - RATE) / n)
    branch = np.asarray(block.apply(params, x) - x) / (1 - RATE)
    np.testing.assert_allclose(y[~passed_by], np.broadcast_to(x + branch, y[~passed_by].shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, way", [("unet_2d", ("down_blocks", "mid_block", "up_blocks")), ("song", ("enc", "dec"))]
)
def test_blocks_are_counted_in_the_order_of_the_way(name, way):
    module = nnx.eval_shape(lambda: UNETS[name].module(Keys(jax.random.key(0))))  # pyright: ignore[reportAttributeAccessIssue]
    blocks = {path: part.place for path, part in nnx.iter_graph(module) if isinstance(part, ResnetBlock)}
    assert sorted(blocks.values()) == [(i, len(blocks)) for i in range(len(blocks))]
    parts = [path[0] for path, _ in sorted(blocks.items(), key=lambda entry: entry[1])]
    assert list(dict.fromkeys(parts)) == list(way)


def test_nothing_left_out_is_the_network_itself():
    np.testing.assert_array_equal(applied(CONFIG, KEYS[:4])(X), applied(CONFIG)(X))


@pytest.mark.parametrize("name", ["dropout", "depth"])
def test_impossible_shares_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name}: 1.0 is not in \[0, 1\)"):
        Regularization(keys=KEYS, **{name: 1.0})
