"""Multistep DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), and 2M of DPM-Solver (arXiv:2206.00927) beside it.

Exponential in the half log-SNR l: with h = l_s - l_t and r = h_previous / h, 2M (algorithm 2) is
x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) D,  D = x0 + (x0 - x0_previous) / (2 r): the slope is weighted by
expm1(-h) / 2, and not by the exact integral. DPM-Solver's is the same in noise prediction, with -sigma_s expm1(h) for
the weight. 1S of either is DDIM.

3M adds the curvature of x0. With D1 and D2 the first and second derivative per h, its step has
alpha_s h (phi_2(-h) D1 + phi_3(-h) D2). As published (and in all its implementations) D2 is half of the derivative, for
it lacks the factor 2 of the Taylor expansion, which makes it second order: more accurate at some ten steps, less so
beyond. With the factor it is the third-order exponential Adams method. The first steps are of lower order.
"""

import dataclasses
from typing import final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.multistep import Multistep, Space, exponential_adams, phi, steps, whole
from jdiff.typing import Array


def before(process: Process, grid: Array, j: int) -> Array:
    """r_j [n - 1]: the length of the j-th step before each step, per its own; infinite where either is not there."""
    h, finite = steps(process, grid)
    number = jnp.arange(h.shape[0]) - j
    there = (number >= 0) & finite & finite[jnp.maximum(number, 0)]
    return jnp.where(there, h[jnp.maximum(number, 0)] / jnp.where(finite, h, 1), jnp.inf)


def half_slope(process: Process, grid: Array, space: Space) -> Array:
    """2M's weights [n - 1, 1]."""
    return -(whole(process, grid, space) / (2 * before(process, grid, 1)))[:, None]


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMpp2M(Multistep):
    """Order 2, one evaluation a step."""

    order = 2
    space = "x0"
    memory = 2

    def weights(self, process: Process, grid: Array) -> Array:
        return half_slope(process, grid, "x0")


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver2M(Multistep):
    """Order 2, one evaluation a step, in noise prediction."""

    order = 2
    space = "eps"
    memory = 2

    def weights(self, process: Process, grid: Array) -> Array:
        return half_slope(process, grid, "eps")


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMpp3M(Multistep):
    """Order 3, one evaluation a step: 3M with the whole curvature; as published, order 2."""

    published: bool = dataclasses.field(default=False, metadata={"static": True})
    """Take half of the curvature, as the paper does."""

    space = "x0"
    memory = 3

    @property
    def order(self) -> int:
        return 2 if self.published else 3

    def weights(self, process: Process, grid: Array) -> Array:
        if not self.published:
            return exponential_adams(process, grid, 3)
        h, _ = steps(process, grid)
        r1, r2 = before(process, grid, 1), before(process, grid, 2)
        full = jnp.isfinite(r1) & jnp.isfinite(r2)
        r1, r2 = jnp.where(full, r1, 1), jnp.where(full, r2, 1)
        # The slopes between the last values, and between those before, as combinations of the differences.
        slopes = jnp.stack([jnp.stack([-1 / r1, jnp.zeros_like(h)]), jnp.stack([1 / r2, -1 / r2])])
        curvature = (slopes[0] - slopes[1]) / (r1 + r2)
        slope = slopes[0] + r1 * curvature
        both = process.alpha(grid[1:]) * h * (phi(2, -h) * slope + phi(3, -h) * curvature)
        return jnp.where(full[:, None], both.T, jnp.pad(half_slope(process, grid, "x0"), ((0, 0), (0, 1))))
