"""Exponential moving average of the parameters, whose horizon grows with training until it reaches `decay`."""

import jax
import jax.numpy as jnp

from jdiff.typing import Array, Params


def update(average: Params, params: Params, step: Array, decay: float) -> Params:
    """The average after update n = `step` (0 for the first): the past weighs min(decay, (1 + n) / (10 + n))."""
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step)).astype(jnp.float32)
    return jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, average, params)
