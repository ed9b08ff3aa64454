"""Langevin dynamics at a noise level, alone or to correct another method.

A corrector step at t is x + step score + sqrt(2 step) z (Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5), with
step = 2 (snr sigma_t)^2. As published, sigma_t is |z| / |score|, averaged over the batch, which is what it is on the
average; then a sample would depend on its batch. Annealed Langevin dynamics (Song and Ermon 2019, arXiv:1907.05600)
are such steps alone, over falling noise levels at fixed x / alpha; there, 2 step / sigma^2 = 4 snr^2 is called
epsilon / sigma_L^2.

The step does not shrink with the grid. On a Gaussian of variance v per value its stationary variance is
v / (1 - step / (2 v)): a bias of about step / 2, whatever the number of steps, so that these methods are of order 0.
"""

import dataclasses
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, evaluate
from jdiff.samplers.sde import ReverseDiffusion
from jdiff.typing import Array, Denoiser


class Corrected(NamedTuple):
    """The plan of a predictor and a corrector."""

    predictor: Any
    s: Array  # [m]: where the steps end


class Levels(NamedTuple):
    """The plan of annealed Langevin dynamics: where its steps are, and what x is multiplied by afterwards."""

    t: Array
    scale: Array


def langevin(denoise: Denoiser, process: Process, x: Array, t: Array, snr: float | Array, z: Array) -> Array:
    """x [B, ...] after one corrector step at t with the noise z."""
    x, prediction = evaluate(denoise, process, x, t)
    sigma = process.sigma(t)
    return x - 2 * snr**2 * sigma * prediction.eps + 2 * snr * sigma * z


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Solver):
    """Order 0 for a fixed snr. The predictor's evaluations a step and one for each correction."""

    predictor: Solver = dataclasses.field(default_factory=ReverseDiffusion)
    """Takes each step; draws noise of part 0 only."""
    corrections: int = dataclasses.field(default=1, metadata={"static": True})
    """Langevin steps after each."""
    snr: float = 0.16
    """Size of a Langevin step."""

    order = 0
    stochastic = True

    @property
    def needs_signal(self) -> bool:
        return self.predictor.needs_signal

    def __post_init__(self):
        if self.corrections < 1:
            raise ValueError(f"PredictorCorrector needs corrections >= 1, got {self.corrections}")
        _require_snr(self, self.snr)

    @property
    def nfe_per_step(self) -> int:
        return self.predictor.nfe_per_step + self.corrections

    def nfe(self, steps: int) -> int:
        return self.predictor.nfe(steps) + self.corrections * steps

    def plan(self, process: Process, grid: Array) -> Corrected:
        return Corrected(self.predictor.plan(process, grid), grid[1:])

    def init(self, x: Array) -> Any:
        return self.predictor.init(x)

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Corrected, noise: Noise
    ) -> tuple[Array, Any]:
        x, carry = self.predictor.step(denoise, process, x, carry, plan.predictor, noise)
        for part in range(1, self.corrections + 1):
            x = langevin(denoise, process, x, plan.s, self.snr, noise.fresh(part))
        return x, carry


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(Solver):
    """Order 0. `corrections` evaluations at each of the grid's times. Needs some signal at the start."""

    corrections: int = dataclasses.field(default=4, metadata={"static": True})
    """Langevin steps at each of the grid's times; the plan's steps are these."""
    snr: float = 0.5
    """Size of a Langevin step."""

    order = 0
    stochastic = True
    needs_signal = True

    def __post_init__(self):
        if self.corrections < 1:
            raise ValueError(f"AnnealedLangevin needs corrections >= 1, got {self.corrections}")
        _require_snr(self, self.snr)

    @property
    def nfe_per_step(self) -> int:
        return self.corrections

    def nfe(self, steps: int) -> int:
        return self.corrections * (steps + 1)

    def plan(self, process: Process, grid: Array) -> Levels:
        alpha = process.alpha(grid)
        onward = jnp.concatenate([alpha[1:] / alpha[:-1], jnp.ones_like(alpha[:1])])
        scale = jnp.ones((grid.shape[0], self.corrections), alpha.dtype).at[:, -1].set(onward)
        return Levels(jnp.repeat(grid, self.corrections), scale.ravel())

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Levels, noise: Noise
    ) -> tuple[Array, Any]:
        return plan.scale * langevin(denoise, process, x, plan.t, self.snr, noise.fresh()), carry


def _require_snr(solver: Solver, snr: float) -> None:
    plain = not isinstance(snr, jax.Array) and isinstance(snr, int | float)
    require(not plain or snr > 0, f"{type(solver).__name__} needs snr > 0, got {snr}")
