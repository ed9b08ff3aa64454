"""Limits of the predicted data, as published samplers apply them: a fixed range, or a quantile of each sample."""

import dataclasses
from typing import final

import jax.numpy as jnp

from jdiff.pytree import pytree
from jdiff.typing import Array


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """x0 within [-limit, limit] (DDPM's "clip denoised")."""

    limit: float | Array = 1.0

    def __call__(self, x0: Array) -> Array:
        return jnp.clip(x0, -self.limit, self.limit)


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicThreshold:
    """x0 clipped at a quantile s of its absolute values, each sample's own, and divided by s (arXiv:2205.11487).

    s lies between 1 and `greatest`."""

    ratio: float | Array = 0.995
    greatest: float | Array = 1.0

    def __call__(self, x0: Array) -> Array:
        size = jnp.quantile(jnp.abs(x0.reshape(len(x0), -1)), self.ratio, axis=1)
        size = jnp.clip(size, 1, self.greatest).reshape(-1, *[1] * (x0.ndim - 1))
        return jnp.clip(x0, -size, size) / size


Limit = Clip | DynamicThreshold
