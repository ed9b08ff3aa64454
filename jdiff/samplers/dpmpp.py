"""DPM-Solver++ multistep (Lu et al. 2022, arXiv:2211.01095): data prediction, exponential in the half log-SNR.

With l = log(alpha / sigma), h = l_s - l_t and r = h_previous / h, 2M (algorithm 2) is
x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) D,  D = x0 + (x0 - x0_previous) / (2 r): the slope is weighted by
expm1(-h) / 2, and not by the exact integral. 3M adds the curvature of x0. As published it takes half of it (the factor
2 of the Taylor expansion is missing), which makes it second order; with the factor it is the third-order exponential
Adams method. The first steps are of lower order.
"""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.samplers.multistep import Multistep, exponential_adams, half_log_snr
from jdiff.typing import Array


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMpp2M(Multistep):
    """Order 2, one evaluation a step."""

    order = 2
    space = "x0"
    memory = 2

    def weights(self, process: Process, grid: Array) -> tuple[Array, Array]:
        h = jnp.diff(half_log_snr(process, grid))
        # Infinite before the first step and at the step from zero SNR, which makes the one after it first order.
        before = jnp.concatenate([jnp.full((1,), jnp.inf, h.dtype), h[:-1]])
        slope = jnp.where(jnp.isinf(before), 0, h / (2 * before))
        whole = -process.alpha(grid[1:]) * jnp.expm1(-h)
        mix = whole[:, None] * jnp.stack([1 + slope, -slope], axis=1)
        return process.sigma(grid[1:]) / process.sigma(grid[:-1]), mix


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMpp3M(Multistep):
    """Order 3, one evaluation a step: 3M with the whole curvature."""

    order = 3
    space = "x0"
    memory = 3

    def weights(self, process: Process, grid: Array) -> tuple[Array, Array]:
        return exponential_adams(process, grid, 3)
