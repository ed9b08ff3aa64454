"""PNDM (Liu et al. 2022, arXiv:2202.09778, algorithm 2): pseudo Runge-Kutta first, then pseudo linear multistep.

Both take DDIM's step with a combination of values of eps. The first three steps evaluate at t, twice halfway in t, and
at s, and weigh the four as Runge and Kutta do, (1, 2, 2, 1) / 6; the others are iPNDM's of four values, and so is the
order: 4 for equal steps in sigma / alpha, else 2.
"""

import dataclasses
from typing import NamedTuple, final

import jax
import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, evaluate
from jdiff.samplers.ipndm import adams_bashforth
from jdiff.samplers.multistep import whole
from jdiff.typing import Array, Denoiser

WARM_UP = 3  # steps with four evaluations


class Row(NamedTuple):
    """The plan of PNDM, m steps."""

    warm: Array  # [m]: whether the step is of the first three
    t: Array  # [m]: where the steps begin
    middle: Array  # [m]: halfway in t
    s: Array  # [m]: where they end
    half: Array  # [m]: factor of a change of eps at the middle
    whole: Array  # [m]: and at the end


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class PNDM(Solver):
    """Order 2, one evaluation a step after three of four each."""

    order = 2
    nfe_per_step = 1

    def nfe(self, steps: int) -> int:
        return steps + 3 * min(steps, WARM_UP)

    def plan(self, process: Process, grid: Array) -> Row:
        t, s = grid[:-1], grid[1:]
        middle = (t + s) / 2
        half = jax.vmap(lambda t, middle: whole(process, jnp.stack([t, middle]), "eps")[0])(t, middle)
        # From zero SNR, where eps alone does not say where to go, both are zero: the first step is DDIM's.
        return Row(jnp.arange(t.shape[0]) < WARM_UP, t, middle, s, half, whole(process, grid, "eps"))

    def init(self, x: Array) -> Array:
        return jnp.zeros((3, *x.shape), x.dtype)

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Array, plan: Row, noise: Noise
    ) -> tuple[Array, Array]:
        _, first = evaluate(denoise, process, x, plan.t)
        moved = lambda change, time, factor: process.perturb(first.x0, first.eps, time) + factor * change

        def change_at(change: Array, time: Array, factor: Array) -> Array:
            """Of eps from the step's start to the state at a time that a change of eps leads to."""
            return evaluate(denoise, process, moved(change, time, factor), time)[1].eps - first.eps

        def runge_kutta() -> Array:
            second = change_at(jnp.zeros_like(x), plan.middle, plan.half)
            third = change_at(second, plan.middle, plan.half)
            fourth = change_at(third, plan.s, plan.whole)
            return (2 * second + 2 * third + fourth) / 6

        def multistep() -> Array:
            return jnp.tensordot(jnp.asarray(adams_bashforth(4)[1:], x.dtype), carry - first.eps, axes=1)

        change = jax.lax.cond(plan.warm, runge_kutta, multistep)
        kept = jnp.concatenate([first.eps[None], carry])[:-1]
        return moved(change, plan.s, plan.whole), kept
