"""Linear layers and convolutions as the CPU computes them, beside XLA's own operations in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jdiff.models.attention import attend
from jdiff.models.products import Conv, Linear


def both(ours, theirs, x, seed=0):
    """Values, and slopes by the input and the parameters, of two modules with the same parameters."""
    graph, state = nnx.split(ours)
    plain = nnx.split(theirs)[0]
    weight = jax.random.normal(jax.random.key(seed), jax.eval_shape(theirs, x).shape, x.dtype)

    @partial(jax.jit, static_argnums=0)
    def call(graph, state, x):
        value, back = jax.vjp(lambda state, x: nnx.merge(graph, state)(x), state, x)
        return value, back(weight)

    one, other = (jax.tree.leaves(call(graph, state, x)) for graph in (graph, plain))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("axes", [(5,), (2, 3), (2, 3, 4), (2, 1, 3, 2)])
def test_linear(x64, axes):
    options = {"param_dtype": jnp.float64, "bias_init": nnx.initializers.normal(1.0)}
    make = lambda layer: layer(3, 4, **options, rngs=nnx.Rngs(0))
    both(make(Linear), make(nnx.Linear), jax.random.normal(jax.random.key(1), (*axes, 3)))


@pytest.mark.parametrize(
    "size, strides, padding",
    [
        ((1, 1), 1, "SAME"),
        ((3, 3), 1, 1),
        ((3, 3), 2, ((0, 1), (0, 1))),
        ((4, 4), 2, ((2, 0), (1, 3))),
        ((2, 3), (2, 1), "SAME"),
        ((3, 2), (1, 3), "VALID"),
        ((2, 2), 2, "VALID"),
    ],
    ids=str,
)
def test_conv(x64, size, strides, padding):
    options = {"param_dtype": jnp.float64, "bias_init": nnx.initializers.normal(1.0)}
    make = lambda layer: layer(3, 4, size, strides=strides, padding=padding, **options, rngs=nnx.Rngs(0))
    both(make(Conv), make(nnx.Conv), jax.random.normal(jax.random.key(1), (2, 8, 7, 3)))


@pytest.mark.parametrize(
    "options", [{"feature_group_count": 2}, {"kernel_dilation": 2}, {"input_dilation": 2, "padding": 1}], ids=str
)
def test_other_convolutions(x64, options):
    options = {"param_dtype": jnp.float64} | options
    make = lambda layer: layer(4, 6, (3, 3), **options, rngs=nnx.Rngs(0))
    both(make(Conv), make(nnx.Conv), jax.random.normal(jax.random.key(1), (2, 8, 7, 4)))


@pytest.mark.parametrize("layer", ["linear", "conv", "attention"])
def test_bfloat16_sums_in_float32(layer):
    """512 times 1 + 2^-7, which bfloat16 holds: a sum in bfloat16 would stop growing, or lose the small part."""
    small, count = 1 + 2**-7, 512
    if layer == "linear":
        module = Linear(count, 1, dtype=jnp.bfloat16, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        result = module(jnp.full((1, 1, count), small))
    elif layer == "conv":
        module = Conv(count, 1, (1, 1), dtype=jnp.bfloat16, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        result = module(jnp.full((1, 1, 1, count), small))
    else:
        ones = jnp.ones((1, count, 1, 8), jnp.bfloat16)
        result = attend(ones, ones, small * ones) * count
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float64).ravel()[0], small * count, rtol=2**-8)
