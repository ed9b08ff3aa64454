"""UniPC (Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2).

UniP-p steps from t with the last p values of x0 (or, in noise prediction, of eps). Once x0 has been evaluated at the
state that it led to, UniC-p repeats the step with that value, too, which costs no evaluation, and the next step goes on
from the corrected state. Both solve R rho = b for their weights, which makes them exact for a polynomial of x0 in
l = log(alpha / sigma) through their values: exponential Adams-Bashforth and Adams-Moulton. Only where one difference of
values is combined is its weight taken as B(h) / 2 instead, with B = -h (bh1) or expm1(-h) (bh2), h = l_s - l_t; in
noise prediction, h or expm1(h). So bh1 and bh2 differ in UniP-2, UniC-1 and the first steps alone, and UniP-2 with bh2
is 2M.

The corrected state is the predicted one and a combination of differences of values, so that correcting it and stepping
on is one linear multistep method of p + 1 values: those weights are what is here. The state at a time of the grid,
where x0 is evaluated, is the predicted one. The last of all is not corrected, for nothing is evaluated there.
"""

import dataclasses
from typing import Literal, final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.dpmpp import before
from jdiff.samplers.multistep import Multistep, half_log_snr, past, polynomial_weights, steps, whole
from jdiff.typing import Array


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC(Multistep):
    """Order p + 1, one evaluation a step."""

    p: int = dataclasses.field(metadata={"static": True})
    """Order of the predictor, by which the method is called; the corrector's is one more."""
    variant: Literal["bh1", "bh2"] = dataclasses.field(default="bh2", metadata={"static": True})
    """B(h), the weight of a single difference."""
    space: Literal["x0", "eps"] = dataclasses.field(default="x0", metadata={"static": True})
    """Which prediction is combined."""

    def __post_init__(self):
        if self.p < 1:
            raise ValueError(f"UniPC needs p >= 1, got {self.p}")
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(f"UniPC needs variant 'bh1' or 'bh2', got {self.variant!r}")

    @property
    def order(self) -> int:
        return self.p + 1

    @property
    def memory(self) -> int:
        return self.p + 1

    def weights(self, process: Process, grid: Array) -> Array:
        scale = process.sigma if self.space == "x0" else process.alpha
        start = scale(grid[:-1])
        ratio = scale(grid[1:]) / jnp.where(start > 0, start, 1)  # nothing is corrected at a start without signal
        correction = jnp.pad(self._corrector(process, grid)[:-1], ((1, 0), (0, 0)))
        predictor = jnp.pad(self._predictor(process, grid), ((0, 0), (0, 1)))
        return predictor + ratio[:, None] * correction

    def _single(self, process: Process, grid: Array) -> Array:
        """The weight of a single difference [n - 1]: that of the whole step, with B(h) for its exponential, halved."""
        if self.variant == "bh2":
            return whole(process, grid, self.space) / 2
        scale = process.alpha(grid[1:]) if self.space == "x0" else -process.sigma(grid[1:])
        return scale * steps(process, grid)[0] / 2

    def _predictor(self, process: Process, grid: Array) -> Array:
        """UniP's factors [n - 1, p - 1] of the differences from the newest value."""
        nodes, exists = past(half_log_snr(process, grid), self.p)
        exact = polynomial_weights(process, grid, self.space, nodes, exists, lambda half: half)[:, 1:]
        if self.p == 1:
            return exact
        single = jnp.zeros_like(exact).at[:, 0].set(-self._single(process, grid) / before(process, grid, 1))
        return jnp.where((exists[:, 1:].sum(axis=1) > 1)[:, None], exact, single)

    def _corrector(self, process: Process, grid: Array) -> Array:
        """What UniC adds at each step's end: factors [n - 1, p] of the differences of earlier values from its own."""
        half = half_log_snr(process, grid)
        earlier, exists = past(half, self.p)
        nodes = jnp.concatenate([half[1:, None], earlier], axis=1)
        there = jnp.pad(exists, ((0, 0), (1, 0)), constant_values=True)
        exact = polynomial_weights(process, grid, self.space, nodes, there, lambda half: half)[:, 1:]
        predictor = self._predictor(process, grid)
        newest = whole(process, grid, self.space) - predictor.sum(axis=1)
        change = exact - jnp.concatenate([newest[:, None], predictor], axis=1)
        single = jnp.zeros_like(change).at[:, 0].set(-self._single(process, grid))
        change = jnp.where((exists[:, 1:].sum(axis=1) > 0)[:, None], change, single)
        return jnp.where(steps(process, grid)[1][:, None], change, 0)
