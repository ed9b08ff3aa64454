"""Attention in one kernel of a TPU, which Pallas interprets here: in value and gradient what JAX's own attention is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jdiff.models.attention import attend
from jdiff.models.fused import fits, one_device


def tokens(n, m, heads, d, dtype):
    rng = np.random.default_rng(0)
    draw = lambda length, scale=1.0: jnp.asarray(scale * rng.normal(size=(2, length, heads, d)), dtype)
    return draw(n, 3.0), draw(m), draw(m), draw(n)


def through(attention, q, k, v, g):
    """Values, and gradients with `g` as that of the values."""
    values, back = jax.vjp(attention, q, k, v)
    return values, *back(g)


@pytest.mark.parametrize(
    "n, m, heads, d",
    [(128, 128, 4, 64), (150, 200, 3, 24), (256, 130, 16, 24)],
    ids=["two heads fill the lanes", "no heads do", "sixteen of them"],
)
def test_the_kernel_is_attention(n, m, heads, d):
    q, k, v, g = tokens(n, m, heads, d, jnp.float32)
    wanted = through(jax.nn.dot_product_attention, q, k, v, g)
    for result, expected in zip(through(lambda *x: one_device(*x, interpret=True), q, k, v, g), wanted, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max())


def test_the_kernel_sums_in_float32():
    """In bfloat16, it is as near to the truth as JAX's own attention; logits are up to 100."""
    q, k, v, g = tokens(256, 256, 2, 64, jnp.bfloat16)
    truth = through(jax.nn.dot_product_attention, *(x.astype(jnp.float32) for x in (q, k, v, g)))
    away = lambda got: [
        np.abs(np.asarray(one, np.float32) - exact).max() / np.abs(exact).max()
        for one, exact in zip(got, truth, strict=True)
    ]
    plain = away(through(jax.nn.dot_product_attention, q, k, v, g))
    assert np.all(
        np.array(away(through(lambda *x: one_device(*x, interpret=True), q, k, v, g))) < 1.5 * np.array(plain)
    )


def pod(kind="TPU v5", **axes):
    device = AbstractDevice(device_kind=kind, num_cores=2, platform="tpu")
    types = (AxisType.Auto,) * len(axes)
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=types, abstract_device=device)


DiT = jax.ShapeDtypeStruct((16, 256, 16, 72), jnp.bfloat16)
REFUSED = {
    "a batch that devices do not divide": (pod(data=32, fsdp=1), DiT),
    "heads that they do not": (pod(data=2, fsdp=2, tensor=3), DiT),
    "tokens that are split": (pod(data=2, fsdp=2, context=2), DiT),
    "blocks that are": (pod(data=2, fsdp=2, pipeline=2), DiT),
    "too little memory": (pod(kind="TPU v4", data=4, fsdp=1), DiT),
    "too many tokens": (pod(data=4, fsdp=1), jax.ShapeDtypeStruct((16, 4096, 16, 64), jnp.bfloat16)),
    "float32": (pod(data=4, fsdp=1), jax.ShapeDtypeStruct(DiT.shape, jnp.float32)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_kernel_is_not_for(why):
    mesh, heads = REFUSED[why]
    with jax.sharding.use_abstract_mesh(mesh):
        assert not fits(heads, heads)


@pytest.mark.parametrize("axes", [{"data": 1, "fsdp": 1}, {"data": 4, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_training_step_on_tpus_takes_it(axes):
    """As lowered for them: one kernel on the way there and one back, whose arrays are what a device has."""

    def step(q):
        with jax.sharding.use_abstract_mesh(pod(**axes)):
            return jax.value_and_grad(lambda q: attend(q, q, q).astype(jnp.float32).sum())(q)

    text = jax.jit(step).trace(DiT).lower(lowering_platforms=("tpu",)).as_text()
    rows, width = 16 // (axes["data"] * axes["fsdp"]), 16 * 72 // axes.get("tensor", 1)
    assert text.count("tpu_custom_call") == 2
    assert f"tensor<{rows}x256x{width}xbf16>" in text


def test_without_a_mesh_of_tpus_attention_is_as_it_was():
    text = jax.jit(lambda q: attend(q, q, q)).trace(DiT).lower(lowering_platforms=("tpu",)).as_text()
    assert not fits(DiT, DiT) and "tpu_custom_call" not in text
