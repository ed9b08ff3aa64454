"""A sampler that is linear in what it has seen, by its coefficients: any published scheduler, to the number.

Each row is one evaluation of the network, of the state x at a time t. With the value v_0 that the row keeps (x0, eps or
v), earlier ones v_1, v_2, ..., a state w that was put aside, and standard normal noise z (z' in the row before),

    x  <-  c_x x + c_w w + c_z z' + sum_j c_j v_j               (a corrector; x itself in most rows)
    w  <-  x, where the row says so
    x  <-  a_x x + a_w w + a_e eps + a_z z + sum_j a_j v_j

covers DDPM and DDIM, linear multistep methods, Runge-Kutta pairs written as two rows, predictors with correctors and
consistency sampling. Where the predicted data is limited, x0 and the kept value are those of the limited data, and eps
is the network's: what the published samplers do.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, final

import jax.numpy as jnp

from jdiff.processes import Process, match
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, evaluate
from jdiff.samplers.limits import Limit
from jdiff.typing import Array, Denoiser


class Rows(NamedTuple):
    """Coefficients of m evaluations, with a memory of k values."""

    t: Array  # [m]: time of the evaluation
    s: Array  # [m]: time that the row ends at
    correct: Array  # [m, 3 + k]: of x, the state put aside, the noise before, and the values, newest first
    keep: Array  # [m]: whether the state is put aside
    step: Array  # [m, 4 + k]: of x, the state put aside, eps, noise, and the values, newest first
    log_variance: Array  # [m, 2]: bounds of a learned variance, in place of the noise's coefficient


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tabulated(Solver):
    """The method of a table. The order is that of whatever it tabulates; the grid's times are in its rows."""

    rows: Rows
    limit: Limit | None = None
    """Limit of the predicted data."""
    space: Literal["x0", "eps", "v"] = dataclasses.field(default="x0", metadata={"static": True})
    """The value that is kept."""
    draws: bool = dataclasses.field(default=False, metadata={"static": True})
    """True if a row draws noise."""
    learned: bool = dataclasses.field(default=False, metadata={"static": True})
    """True if the network predicts the variance between the rows' bounds."""

    order = 1
    nfe_per_step = 1

    @property
    def stochastic(self) -> bool:
        return self.draws

    def nfe(self, steps: int) -> int:
        return self.rows.t.shape[0]

    def plan(self, process: Process, grid: Array) -> Rows:
        return Rows(*(jnp.asarray(part, grid.dtype) for part in self.rows))

    def init(self, x: Array) -> Any:
        memory = self.rows.step.shape[1] - 4
        return jnp.zeros((memory, *x.shape), x.dtype), x, jnp.zeros_like(x)

    def _value(self, process: Process, x: Array, x0: Array, eps: Array, t: Array) -> Array:
        if self.space == "x0":
            return x0
        alpha, sigma = match(process.alpha(t), x), match(process.sigma(t), x)
        if self.limit is not None:
            eps = (x - alpha * x0) / sigma
        return eps if self.space == "eps" else alpha * eps - sigma * x0

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Rows, noise: Noise
    ) -> tuple[Array, Any]:
        memory, aside, before = carry
        x, prediction = evaluate(denoise, process, x, plan.t)
        x0 = prediction.x0 if self.limit is None else self.limit(prediction.x0)
        value = self._value(process, x, x0, prediction.eps, plan.t)
        memory = jnp.concatenate([value[None], memory])[:-1]
        seen = lambda weights: jnp.tensordot(weights, memory, axes=1)
        correct, step = plan.correct, plan.step
        x = correct[0] * x + correct[1] * aside + correct[2] * before + seen(correct[3:])
        aside = jnp.where(plan.keep > 0, x, aside)
        out = step[0] * x + step[1] * aside + step[2] * prediction.eps + seen(step[4:])
        if self.draws:
            before = noise.between(plan.t, plan.s)
            out += self._spread(plan, prediction.variance) * before
        return out, (memory, aside, before)

    def _spread(self, plan: Rows, fraction: Array | None) -> Array:
        if not self.learned:
            return plan.step[3]
        if fraction is None:
            raise ValueError("the schedule's variance is learned, and the network predicts none")
        low, high = plan.log_variance
        return plan.step[3] * jnp.exp((low + fraction * (high - low)) / 2)
