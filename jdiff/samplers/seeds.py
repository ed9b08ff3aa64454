"""Single-step exponential Runge-Kutta methods for the reverse SDE: SEEDS (Gonzalez et al. 2023, arXiv:2305.14267).

With l = log(alpha / sigma), the time reversal of the forward SDE from t to j, H = l_j - l_t, is either of

    x_j = (alpha_j / alpha_t) x_t - 2 alpha_j int e^-l eps dl + noise                         (noise prediction)
    x_j = (sigma_j / sigma_t) e^-H x_t + 2 (sigma_j / e^l_j) int e^2l x0 dl + noise           (data prediction)

whose noise is a sum of independent normal numbers, one for each part of the step, with the integrals' true variances.
SEEDS-2 takes the value in the middle for the whole step; SEEDS-3, at one third and at two thirds, a value and a slope.
In data prediction SEEDS-2 is DPM-Solver++ 2S for the SDE, k-diffusion's `dpmpp_sde`.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, evaluate
from jdiff.samplers.multistep import half_log_snr
from jdiff.typing import Array, Denoiser

WIDEST = 16.0  # in l: a step from zero SNR is one from e^-32 of its end's SNR, which is noise, too


class Stages(NamedTuple):
    """The plan of a method of k stages, m steps."""

    times: Array  # [m, k + 1]: from a step's start to its end
    keep: Array  # [m, k]: factors of x_t in each stage's end
    first: Array  # [m, k]: factors of the value at the start
    change: Array  # [m, k]: factors of what the last value is more than the first
    spread: Array  # [m, k, k]: standard deviations at each stage's end of the noise of each part


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class SEEDS(Solver):
    """Weak order 2, as many evaluations a step as it has stages. Noise prediction needs some signal at the start."""

    stages: Literal[2, 3] = dataclasses.field(default=2, metadata={"static": True})
    """Evaluations a step."""
    space: Literal["x0", "eps"] = dataclasses.field(default="eps", metadata={"static": True})
    """Which prediction is taken for constant over a stage."""

    order = 2
    strong_order = 1.0
    stochastic = True

    def __post_init__(self):
        if self.stages not in (2, 3) or self.space not in ("x0", "eps"):
            raise ValueError(f"SEEDS needs 2 or 3 stages in 'x0' or 'eps', got {self.stages} in {self.space!r}")

    @property
    def nfe_per_step(self) -> int:
        return self.stages

    @property
    def needs_signal(self) -> bool:
        return self.space == "eps"

    def plan(self, process: Process, grid: Array) -> Stages:
        start, end = half_log_snr(process, grid[:-1]), half_log_snr(process, grid[1:])
        end = jnp.minimum(end, jnp.maximum(start, -WIDEST / 2) + WIDEST)
        start = jnp.maximum(start, end - WIDEST)
        share = jnp.arange(self.stages + 1, dtype=grid.dtype) / self.stages
        at = start[:, None] + (end - start)[:, None] * share
        times = process.time(2 * at).at[:, 0].set(grid[:-1]).at[:, -1].set(grid[1:])
        alpha, sigma, h = process.alpha(times), process.sigma(times), (at - at[:, :1])[:, 1:]
        if self.space == "x0":
            keep = sigma[:, 1:] / sigma[:, :1] * jnp.exp(-h)
            first, ramp = -alpha[:, 1:] * jnp.expm1(-2 * h), alpha[:, 1:] * (1 + jnp.expm1(-2 * h) / (2 * h))
            scale, gone = sigma, jnp.exp(2 * (at[:, None, :] - at[:, 1:, None]))
        else:
            level = sigma / alpha
            keep, scale = alpha[:, 1:] / alpha[:, :1], alpha
            first = -2 * alpha[:, 1:] * (level[:, :1] - level[:, 1:])
            ramp = first / h + 2 * sigma[:, 1:]
            gone = -jnp.broadcast_to(level[:, None, :] ** 2, (grid.shape[0] - 1, self.stages, self.stages + 1))
        # A stage's slope is between the start and the end of the stage before; SEEDS-2 has none.
        slope = first if self.stages == 2 else ramp * share[1:] / jnp.maximum(share[:-1], share[1])
        change = jnp.where(share[1:] == share[1], 0, slope)
        before = jnp.tril(jnp.ones((self.stages, self.stages), bool))
        spread = scale[:, 1:, None] * jnp.sqrt(jnp.where(before, jnp.diff(gone, axis=-1), 0))
        return Stages(times, keep, first, change, spread)

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Stages, noise: Noise
    ) -> tuple[Array, Any]:
        x, prediction = evaluate(denoise, process, x, plan.times[0])
        first = value = getattr(prediction, self.space)
        parts = []
        for j in range(self.stages):
            parts.append(noise.between(plan.times[j], plan.times[j + 1], j))
            new = jnp.tensordot(plan.spread[j, : j + 1], jnp.stack(parts), axes=1)
            end = plan.keep[j] * x + plan.first[j] * first + plan.change[j] * (value - first) + new
            if j + 1 < self.stages:
                value = getattr(evaluate(denoise, process, end, plan.times[j + 1])[1], self.space)
        return end, carry
