"""SA-Solver: stochastic Adams predictor and corrector (Xue et al. 2023, arXiv:2309.05019, algorithm 1).

The predictor of a step takes the polynomial of x0 through the last values; the corrector that through these and the
value at the predicted end, which is also the next step's value: one evaluation a step. Both solve the same SDE with the
same noise, so that the corrected state is the predicted one plus differences of weights times values.
"""

import dataclasses
from typing import NamedTuple, final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.processes.base import is_plain, require
from jdiff.pytree import pytree
from jdiff.samplers.multistep import half_log_snr, past
from jdiff.samplers.sde_multistep import (
    LogFade,
    StochasticMultistep,
    anchored,
    constant,
    integrals,
    spread,
    stochastic_adams,
)
from jdiff.typing import Array


class CorrectedWeights(NamedTuple):
    """The plan of SA-Solver, m steps over k values."""

    t: Array  # [m]: where the steps begin
    s: Array  # [m]: where they end
    correct: Array  # [m, k]: factors of the values in what the corrector adds to the state at t, the newest first
    keep: Array  # [m]: the predictor's factors of x_t
    mix: Array  # [m, k]: the predictor's factors of the values
    spread: Array  # [m]: standard deviations of the noise


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class SASolver(StochasticMultistep):
    """Weak order 2 with noise; without, that of the corrector, up to one more than the predictor's. One evaluation a
    step."""

    predictor: int = dataclasses.field(default=3, metadata={"static": True})
    """How many values the predictor combines."""
    corrector: int = dataclasses.field(default=4, metadata={"static": True})
    """How many values the corrector combines, that at the predicted end among them; 0 for no corrector."""
    tau: float = 1.0
    """The noise over that of the time reversal, where there is any."""
    low: float = 0.0
    """The least sigma / alpha at which a step that draws noise begins."""
    high: float = float("inf")
    """The greatest."""

    def __post_init__(self):
        if self.predictor < 1 or self.corrector < 0:
            raise ValueError(
                f"SASolver needs predictor >= 1 and corrector >= 0, got {self.predictor}, {self.corrector}"
            )
        require(not is_plain(self) or self.tau >= 0, f"SASolver needs tau >= 0, got {self.tau}")

    @property
    def stochastic(self) -> bool | Array:
        return self.tau > 0

    @property
    def order(self) -> int:
        exact = min(self.predictor + 1, self.corrector) if self.corrector else self.predictor
        return exact if is_plain(self) and self.tau == 0 else min(exact, 2)

    @property
    def memory(self) -> int:
        return max(self.predictor + 1, self.corrector)

    def log_fade(self, process: Process, grid: Array) -> LogFade:
        level = jnp.exp(-half_log_snr(process, grid[:-1]))
        return constant(
            jnp.where((level >= self.low) & (level <= self.high), jnp.square(self.tau), 0).astype(grid.dtype)
        )

    def weights(self, process: Process, grid: Array) -> tuple[Array, Array]:
        keep, mix = stochastic_adams(process, grid, self.predictor, self.log_fade(process, grid))
        return keep, jnp.pad(mix, ((0, 0), (0, self.memory - self.predictor)))

    def plan(self, process: Process, grid: Array) -> CorrectedWeights:
        keep, mix = self.weights(process, grid)
        noise = spread(process, grid, self.log_fade(process, grid))
        return CorrectedWeights(grid[:-1], grid[1:], self._corrections(process, grid, mix), keep, mix, noise)

    def _corrections(self, process: Process, grid: Array, mix: Array) -> Array:
        """Of the state at the start of each step, from the corrector's weights over the step before."""
        if self.corrector == 0:
            return jnp.zeros_like(mix)
        at, fade = half_log_snr(process, grid), self.log_fade(process, grid)
        before, known = past(at, max(self.corrector - 1, 1))
        nodes = jnp.concatenate([at[1:, None], before], axis=1)[:, : self.corrector]
        exists = jnp.concatenate([jnp.ones_like(known[:, :1]), known], axis=1)[:, : self.corrector] & jnp.isfinite(
            nodes
        )
        nodes = jnp.where(exists, nodes, nodes[:, :1])
        _, better = anchored(process, grid, fade, integrals(process, grid, fade, nodes, exists))
        better = jnp.pad(better, ((0, 0), (0, self.memory - self.corrector)))
        change = better[:-1] - jnp.roll(mix, 1, axis=1)[:-1]  # whose last column is zero
        return jnp.pad(change, ((1, 0), (0, 0)))

    def corrected(self, x: Array, values: Array, plan: CorrectedWeights) -> Array:
        return x + jnp.tensordot(plan.correct, values, axes=1)
