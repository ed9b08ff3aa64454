"""Variance-exploding processes: x_t = x0 + t eps, so that time is the noise's standard deviation, sigma(t) = t.

The SDE is dx = sqrt(2 t) dW. Song et al. 2021 (arXiv:2011.13456, eq. 30) run through it geometrically, which here is a
choice of grid and of training times; Karras et al. 2022 (EDM, arXiv:2206.00364) run through it as t = sigma.
"""

import dataclasses
from typing import final

import jax.numpy as jnp

from jdiff.processes.base import Process, is_plain, require
from jdiff.pytree import pytree
from jdiff.typing import Array, Time


class _VarianceExploding(Process):
    sigma_min: float
    sigma_max: float

    def __post_init__(self):
        if not is_plain(self):
            return
        name = type(self).__name__
        require(self.sigma_min > 0, f"{name} needs sigma_min > 0, got {self.sigma_min}")
        require(
            self.sigma_max > self.sigma_min,
            f"{name} needs sigma_max > sigma_min = {self.sigma_min}, got {self.sigma_max}",
        )

    @property
    def time_span(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def alpha(self, t: Time) -> Array:
        return jnp.ones_like(jnp.asarray(t))

    def sigma(self, t: Time) -> Array:
        return jnp.asarray(t)

    def log_snr(self, t: Time) -> Array:
        return -2 * jnp.log(t)

    def time(self, log_snr: Time) -> Array:
        return jnp.exp(-jnp.asarray(log_snr) / 2)


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class VE(_VarianceExploding):
    """Variance-exploding SDE over the noise levels of NCSN++."""

    sigma_min: float = 0.01
    """The least noise level."""
    sigma_max: float = 50.0
    """The greatest noise level."""


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM(_VarianceExploding):
    """The process of EDM, over its noise levels."""

    sigma_min: float = 0.002
    """The least noise level."""
    sigma_max: float = 80.0
    """The greatest noise level."""
