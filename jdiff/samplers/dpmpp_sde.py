"""DPM-Solver++ multistep for the reverse SDE (arXiv:2211.01095, section 5; 2M and 3M as in k-diffusion).

With h = l_s - l_t, H = (1 + eta) h and r = h_previous / h, 2M is

    x_s = (sigma_s / sigma_t) e^(-eta h) x + alpha_s (1 - e^-H) D + sigma_s sqrt(1 - e^(-2 eta h)) z,
    D = x0 + (x0 - x0_previous) / (2 r).

3M adds the curvature of x0; `published` takes half of it, as its ODE form does (`dpmpp.py`). The single-step forms are
elsewhere: 1S with eta = 1 is ancestral sampling (`ddpm.py`), 2S is SEEDS-2 in data prediction (`seeds.py`).
"""

import dataclasses
from typing import final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.processes.base import is_plain, require
from jdiff.pytree import pytree
from jdiff.samplers.multistep import half_log_snr, past
from jdiff.samplers.sde_multistep import LogFade, StochasticMultistep, anchored, constant, stochastic_adams
from jdiff.typing import Array


class _DPMppSDE(StochasticMultistep):
    eta: float

    def __post_init__(self):
        require(not is_plain(self) or self.eta >= 0, f"{type(self).__name__} needs eta >= 0, got {self.eta}")

    @property
    def stochastic(self) -> bool | Array:
        return self.eta > 0

    def log_fade(self, process: Process, grid: Array) -> LogFade:
        return constant(jnp.asarray(self.eta, grid.dtype))


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMpp2MSDE(_DPMppSDE):
    """Weak order 2, one evaluation a step."""

    eta: float = 1.0
    """tau^2: 1 is the time reversal of the forward SDE, 0 is DPM-Solver++ 2M."""

    order = 2
    memory = 2

    def weights(self, process: Process, grid: Array) -> tuple[Array, Array]:
        fade = self.log_fade(process, grid)
        keep, whole = anchored(process, grid, fade, jnp.zeros((grid.shape[0] - 1, 0), grid.dtype))
        h = jnp.diff(half_log_snr(process, grid))
        before = jnp.concatenate([jnp.full((1,), jnp.inf, h.dtype), h[:-1]])
        share = jnp.where(jnp.isfinite(before) & jnp.isfinite(h), h / (2 * before), 0)
        return keep, whole * jnp.stack([1 + share, -share], axis=1)


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMpp3MSDE(_DPMppSDE):
    """Weak order 2, one evaluation a step."""

    eta: float = 1.0
    """tau^2: 1 is the time reversal of the forward SDE, 0 is DPM-Solver++ 3M."""
    published: bool = dataclasses.field(default=True, metadata={"static": True})
    """Half of the curvature, as published, or all of it."""

    order = 2
    memory = 3

    def weights(self, process: Process, grid: Array) -> tuple[Array, Array]:
        keep, mix = stochastic_adams(process, grid, 3, self.log_fade(process, grid))
        if not self.published:
            return keep, mix
        at = half_log_snr(process, grid)
        h = jnp.diff(at)
        whole = (1 + self.eta) * h
        # What half a curvature of one, (l - l_t)^2 / 2, contributes.
        inner = process.alpha(grid[1:]) * h**2 * (1 / 2 - (1 + jnp.expm1(-whole) / whole) / whole)
        return keep, mix - jnp.where(jnp.isfinite(h), inner, 0)[:, None] * _curvature(at)


def _curvature(at: Array) -> Array:
    """Factors [n - 1, 3] of the last three values in the second derivative of their parabola, over two."""
    nodes, exists = past(at, 3)
    apart = nodes[:, :, None] - nodes[:, None, :]
    factor = jnp.prod(jnp.where(apart == 0, 1, apart), axis=2)
    return jnp.where(exists.all(axis=1, keepdims=True), 1 / factor, 0)
