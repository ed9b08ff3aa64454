"""Layers that multiply rows, beside Flax's own."""

import jax
import numpy as np
import pytest
from flax import nnx

from jdiff.models.products import Conv, Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize(
    ("ours", "flax", "more"), [(Linear, nnx.Linear, ()), (Conv, nnx.Conv, ((1, 1),))], ids=["linear", "conv"]
)
def test_rows_are_what_flax_computes(ours, flax, more, batch, bias):
    x = jax.random.normal(jax.random.key(0), (batch, 4, 5, 6))
    options = {"use_bias": bias, "bias_init": nnx.initializers.normal(1.0)}
    one, other = (layer(6, 7, *more, **options, rngs=nnx.Rngs(0)) for layer in (ours, flax))
    np.testing.assert_allclose(one(x), other(x), rtol=1e-5, atol=1e-5)
