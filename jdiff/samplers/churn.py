"""Steps that add noise before they take it away: EDM's stochastic sampler and Restart.

With y = x / alpha and r = sigma / alpha, the probability-flow ODE is dy/dr = eps. Each step adds noise of the forward
process, from r to r_up, and goes down to r_s by Heun's method:

    y_up = y + sqrt(r_up^2 - r^2) z,   y_s = y_up + (r_s - r_up) (eps_up + eps_s) / 2.

EDM (Karras et al. 2022, arXiv:2206.00364, algorithm 2) goes up a little at each step, r_up = (1 + gamma) r. Restart (Xu
et al. 2023, arXiv:2306.14878, algorithm 1) goes up far, several times, when it has come down to a certain level. Both
keep the true marginals but for the error of Heun's method.
"""

import dataclasses
from typing import Any, NamedTuple, final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, evaluate
from jdiff.samplers.multistep import half_log_snr
from jdiff.typing import Array, Denoiser


class Rise(NamedTuple):
    """The plan: up from t by noise, then down to s."""

    up: Array  # the time after the noise
    s: Array
    again: Array  # the time of the second evaluation: s, but on the way to the data, where it counts for nothing, t_up
    keep: Array  # what x at t is multiplied by on the way up
    spread: Array  # standard deviation of the noise
    turn: Array  # alpha_s (r_s - r_up) / 2, the factor of eps_s - eps_up


class Churned(Solver):
    """Noise up and Heun down."""

    order = 2
    stochastic = True
    nfe_per_step = 2

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Rise, noise: Noise
    ) -> tuple[Array, Any]:
        x, first = evaluate(denoise, process, plan.keep * x + plan.spread * noise.fresh(), plan.up)
        alpha, sigma = process.alpha(plan.s), process.sigma(plan.s)
        # y_up + (r_s - r_up) eps_up is x0 + r_s eps, which is finite without signal, too.
        euler = alpha * first.x0 + sigma * first.eps
        _, second = evaluate(denoise, process, euler, plan.again)
        return euler + plan.turn * (second.eps - first.eps), carry


def _rise(process: Process, t: Array, up: Array, s: Array, loud: float | Array = 1.0) -> Rise:
    """The plan for times [m] t, up, s."""
    low, high, end = (half_log_snr(process, time) for time in (t, up, s))
    keep = jnp.where(up == t, 1, process.alpha(up) / process.alpha(t))
    spread = loud * process.sigma(up) * jnp.sqrt(jnp.where(up == t, 0, -jnp.expm1(2 * (high - low))))
    inside = jnp.isfinite(high) & jnp.isfinite(end)
    turn = jnp.where(inside, process.sigma(s) - process.alpha(s) * jnp.exp(-high), 0) / 2
    return Rise(up, s, jnp.where(jnp.isfinite(end), s, up), keep, spread, turn)


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMStochastic(Churned):
    """Weak order 2 for noise = 1, two evaluations a step."""

    churn: float = 10.0
    """S_churn: gamma is this over the number of steps, at most sqrt(2) - 1. No step goes above the process's t_max."""
    low: float = 0.0
    """S_min: the least sigma / alpha at which noise is added."""
    high: float = float("inf")
    """S_max: the greatest."""
    noise: float = 1.0
    """S_noise: the standard deviation of the noise over what the marginals need."""

    def __post_init__(self):
        plain = isinstance(self.churn, int | float) and isinstance(self.noise, int | float)
        require(
            not plain or ((self.churn >= 0) & (self.noise > 0)),
            f"EDMStochastic needs churn >= 0 and noise > 0, got {self.churn} and {self.noise}",
        )

    def plan(self, process: Process, grid: Array) -> Rise:
        t, s = grid[:-1], grid[1:]
        level = jnp.exp(-half_log_snr(process, t))
        gamma = jnp.minimum(jnp.asarray(self.churn, grid.dtype) / t.shape[0], jnp.sqrt(2.0) - 1)
        raised = process.time(process.log_snr(t) - 2 * jnp.log1p(gamma))
        top = jnp.maximum(t, jnp.minimum(raised, jnp.asarray(process.time_span[1], grid.dtype)))
        up = jnp.where((level >= self.low) & (level <= self.high) & (gamma > 0), top, t)
        return _rise(process, t, up, s, jnp.asarray(self.noise, grid.dtype))


class Interval(NamedTuple):
    """Where to restart: noise levels sigma / alpha, how often, and in how many steps as a share of the grid's."""

    low: float
    high: float
    repeats: int
    share: float


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Restart(Churned):
    """Weak order 2, two evaluations a step of the grid and of the restarts."""

    intervals: tuple[Interval, ...] = dataclasses.field(
        default=(Interval(low=0.06, high=0.3, repeats=2, share=0.25),), metadata={"static": True}
    )
    """Each with `low` below `high`. At the grid's time nearest to `low`, noise up to `high` (or t_max) is added, and
    taken away in round(share * steps) steps, at least one, equal in r^(1/7), `repeats` times. An interval below the
    grid's noise levels adds nothing."""

    def __post_init__(self):
        for low, high, repeats, share in self.intervals:
            if not (0 < low < high and repeats >= 1 and share > 0):
                raise ValueError(
                    "Restart needs intervals with 0 < low < high, repeats >= 1 and share > 0, got "
                    f"{low, high, repeats, share}"
                )

    def _steps(self, interval: Interval, steps: int) -> int:
        return max(1, round(interval.share * steps))

    def nfe(self, steps: int) -> int:
        return 2 * (steps + sum(i.repeats * self._steps(i, steps) for i in self.intervals))

    def plan(self, process: Process, grid: Array) -> Rise:
        steps = grid.shape[0] - 1
        number = jnp.arange(steps, dtype=grid.dtype)  # a row's place; those of a restart follow the row of its start
        blocks = [[number, grid[:-1], grid[:-1], grid[1:]]]
        for which, interval in enumerate(self.intervals):
            at = jnp.argmin(jnp.abs(half_log_snr(process, grid[1:]) + jnp.log(interval.low)))
            down = self._down(process, grid[1:][at], interval, self._steps(interval, steps))
            start = down[:-1].at[0].set(grid[1:][at])
            place = number[at] + (which + 1) / (len(self.intervals) + 1)
            rows = [jnp.full_like(start, place), start, down[:-1], down[1:]]
            blocks.append([jnp.tile(row, interval.repeats) for row in rows])
        place, t, up, s = (jnp.concatenate(part) for part in zip(*blocks, strict=True))
        order = jnp.argsort(place)  # stable
        return _rise(process, t[order], up[order], s[order])

    def _down(self, process: Process, bottom: Array, interval: Interval, steps: int) -> Array:
        """Times [steps + 1] from the interval's top to `bottom`."""
        low = jnp.exp(-half_log_snr(process, bottom))
        most = jnp.exp(-process.log_snr(jnp.asarray(process.time_span[1], low.dtype)) / 2)
        high = jnp.maximum(jnp.minimum(interval.high, most), low)
        share = jnp.arange(steps + 1, dtype=low.dtype) / steps
        level = (high ** (1 / 7) + share * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        times = process.time(-2 * jnp.log(level))
        return jnp.where(high > low, times, bottom).at[-1].set(bottom)
