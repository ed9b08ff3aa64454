"""A learned noise schedule: gamma(t) = -log_snr(t), monotone in t, from gamma_min at t_min to gamma_max at t = 1.

Kingma et al. 2021 (VDM, arXiv:2107.00630, appendix H): with positive weights w and steepnesses b,

    gamma(t) = gamma_min + (gamma_max - gamma_min) (h(t) - h(t_min)) / (h(1) - h(t_min)),
    h(t) = t + sum_k w_k sigmoid(b_k (t - c_k)),

which is smooth, so that its slope is, too. The inverse is found by bisection, within h - sum_k w_k <= t <= h, and one
step of Newton's method, through which the gradients of the implicit function flow.
"""

import dataclasses
import math
from typing import final

import jax
import jax.numpy as jnp

from jdiff.processes.base import require, slope
from jdiff.processes.inner import InnerLogSNR
from jdiff.pytree import pytree
from jdiff.typing import Array


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LearnedGamma(InnerLogSNR):
    """Variance-preserving process with a learned schedule. Its leaves are the learned parameters, and only they.

    alpha(1) need not be negligible: the prior has the terminal noise and leaves out that much of the data.
    """

    log_weights: Array
    """log w, [K]."""
    log_steepness: Array
    """log b, [K]."""
    centres: Array
    """c, [K]."""
    gamma_min: float = dataclasses.field(default=-13.3, metadata={"static": True})
    """-log_snr(t_min)."""
    gamma_max: float = dataclasses.field(default=5.0, metadata={"static": True})
    """-log_snr(1)."""
    t_min: float = dataclasses.field(default=1e-3, metadata={"static": True})
    """The least time that is trained and sampled."""

    def __post_init__(self):
        require(
            self.gamma_max > self.gamma_min,
            f"LearnedGamma needs gamma_max > gamma_min = {self.gamma_min}, got {self.gamma_max}",
        )
        require((self.t_min > 0) & (self.t_min < 1), f"LearnedGamma needs 0 < t_min < 1, got {self.t_min}")

    @property
    def time_span(self) -> tuple[float, float]:
        return self.t_min, 1.0

    def _height(self, t: Array) -> Array:
        """h(t)."""
        weights, steepness = (jnp.exp(jnp.asarray(log, t.dtype)) for log in (self.log_weights, self.log_steepness))
        bends = jax.nn.sigmoid(steepness * (t[..., None] - jnp.asarray(self.centres, t.dtype)))
        return t + (weights * bends).sum(-1)

    def _heights(self, dtype) -> tuple[Array, Array]:
        """h(t_min) and h(1)."""
        low, high = (self._height(jnp.asarray(end, dtype)) for end in self.time_span)
        return low, high

    def inner_log_snr(self, t: Array) -> Array:
        low, high = self._heights(t.dtype)
        return -self.gamma_min - (self.gamma_max - self.gamma_min) * ((self._height(t) - low) / (high - low))

    def inner_time(self, log_snr: Array) -> Array:
        low, high = self._heights(log_snr.dtype)
        share = (-log_snr - self.gamma_min) / (self.gamma_max - self.gamma_min)
        height = low + (high - low) * share
        most = jax.lax.stop_gradient(height)
        least = most - jax.lax.stop_gradient(jnp.exp(jnp.asarray(self.log_weights, log_snr.dtype)).sum())

        def halve(_, ends):
            left, right = ends
            middle = (left + right) / 2
            above = jax.lax.stop_gradient(self._height(middle)) > most
            return jnp.where(above, left, middle), jnp.where(above, middle, right)

        digits = jnp.finfo(log_snr.dtype).nmant
        t = jax.lax.stop_gradient(jax.lax.fori_loop(0, digits, halve, (least, most))[1])
        return t - (self._height(t) - height) / slope(self._height, t)


def linear_gamma(
    gamma_min: float = -13.3, gamma_max: float = 5.0, units: int = 16, t_min: float = 1e-3
) -> LearnedGamma:
    """A `LearnedGamma` of `units` bends, nearly linear in t; its ends are fixed (VDM's for 8-bit images by default)."""
    require(units > 0, f"linear_gamma needs units > 0, got {units}")
    return LearnedGamma(
        log_weights=jnp.full(units, -math.log(units), jnp.float32),
        log_steepness=jnp.full(units, math.log(units), jnp.float32),
        centres=(jnp.arange(units, dtype=jnp.float32) + 0.5) / units,
        gamma_min=gamma_min,
        gamma_max=gamma_max,
        t_min=t_min,
    )
