"""The weak error of multistep methods, nearly without sampling.

Let v_k(x) be any functions of the state at row k of a solver's plan, with v_m = f at the end. Along the solver's own
path x_0, ..., x_m

    E f(x_m) = E v_0(x_0) + sum_k E [v_{k + 1}(x_{k + 1}) - v_k(x_k)],

whatever v is; x_k is the state that step k goes on from, the corrected one of a method that corrects. Here v is what f
is worth under the trapezoidal rule for the same SDE, a method of weak order 2 without memory, kept on lattices as in
`weak.py`: so that the first term is known without sampling, and each other one, a step's defect, is small. As v_k(x_k)
is the mean of v_{k + 1} after a step of that rule, a defect is the difference that both steps make with the same noise,
averaged over this noise and that of the steps before which the method remembers. What is left differs little from path
to path, and some thousand of them tell the error to a few percent.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.lab.measure import marginal_draws, observables
from jdiff.lab.weak import Lattices, interpolated, lattice_mean, lattices, square, worths
from jdiff.oracles import Distribution
from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers import Noise, Solver
from jdiff.samplers.base import evaluate
from jdiff.samplers.multistep import half_log_snr
from jdiff.samplers.sde_multistep import StochasticMultistep, anchored, integrals, spread
from jdiff.typing import Array, Denoiser

PATHS = 256  # a batch, for each row
LATTICES = (48, 64, 96)  # points along each side, tried in turn
STRIDE = 32  # rows from one whose defects are measured on some paths to the next: more paths for the same work


class _Rule(NamedTuple):
    """The plan of the trapezoidal rule, m steps."""

    t: Array  # [m]: where the steps begin
    s: Array  # [m]: where they end
    keep: Array  # [m]: factors of x_t
    first: Array  # [m]: factors of x0 at t, in the prediction
    change: Array  # [m]: factors of what x0 at the predicted end is more than that
    spread: Array  # [m]: standard deviations of the noise


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trapezoid(Solver):
    """The SDE of a multistep method by the line through x0 at a step's start and at its predicted end."""

    of: StochasticMultistep

    order = 2
    stochastic = True
    nfe_per_step = 2

    def plan(self, process: Process, grid: Array) -> _Rule:
        at, fade = half_log_snr(process, grid), self.of.log_fade(process, grid)
        nodes = jnp.stack([at[:-1], at[1:]], axis=1)
        keep, mix = anchored(process, grid, fade, integrals(process, grid, fade, nodes, jnp.isfinite(nodes)))
        return _Rule(grid[:-1], grid[1:], keep, mix.sum(axis=1), mix[:, 1], spread(process, grid, fade))

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: tuple, plan: _Rule, noise: Noise
    ) -> tuple[Array, tuple]:
        x, first = evaluate(denoise, process, x, plan.t)
        x = plan.keep * x + plan.first * first.x0 + plan.spread * noise.between(plan.t, plan.s)
        _, last = evaluate(denoise, process, x, plan.s)
        return x + plan.change * (last.x0 - first.x0), carry


def _noise_rule(steps: int, dtype) -> tuple[Array, Array]:
    """Values [q, steps, 2] of the noise of several steps, and weights [q], exact to degree five."""
    d = 2 * steps
    unit, signs = np.eye(d), [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    pairs = [a * unit[i] + b * unit[j] for i in range(d) for j in range(i) for a, b in signs]
    nodes = np.concatenate([np.zeros((1, d)), *[sign * np.sqrt(d + 2) * unit for sign in (1, -1)]])
    nodes = np.concatenate([nodes, np.sqrt((d + 2) / 2) * np.reshape(pairs, (-1, d))])
    weights = [2 / (d + 2)] + 2 * d * [(4 - d) / (2 * (d + 2) ** 2)] + len(pairs) * [1 / (d + 2) ** 2]
    return jnp.asarray(nodes.reshape(-1, steps, 2), dtype), jnp.asarray(weights, dtype)


def lookback(solver: StochasticMultistep) -> int:
    """Over how many steps' noise before its own a defect is averaged: all that has moved the states at which the values
    of both its ends were computed."""
    return solver.memory


class _Known(NamedTuple):
    """What does not depend on the paths."""

    error: Array  # [6]: the weak error without the defects of the rows from the lookback on
    lattices: Lattices
    worth: Array  # [m, points^2, 6]: v_k on the lattice of row k
    rule: _Rule


def _step(solver: Solver, denoise: Denoiser, process: Process, x: Array, carry, row, z: Array):
    """One step with the noise z [2] or [B, 2]."""
    drawn = lambda t, s, part=0: jnp.broadcast_to(jnp.asarray(z, x.dtype), x.shape)

    def fresh(part: int = 0) -> Array:
        raise ValueError("a multistep method takes its noise from the path alone")

    return solver.step(denoise, process, x, carry, row, Noise(between=drawn, fresh=fresh))


def _corrected(solver: StochasticMultistep, denoise: Denoiser, process: Process, x: Array, carry: Array, row) -> Array:
    """The state that the step of a row goes on from."""
    x, prediction = evaluate(denoise, process, x, row.t)
    return solver.corrected(x, jnp.concatenate([prediction.x0[None], carry]), row)


def _defect(
    solver: StochasticMultistep, denoise, process: Process, plan, known: _Known, x: Array, carry: Array, row, n: int
) -> Array:
    """The defect [B, 6] of the step at row + n, averaged over its noise and that of the steps from `row` on, given the
    state x [B, 2] and the carry at `row`."""
    of_row = lambda k, plan=plan: jax.tree.map(lambda leaf: leaf[k], plan)
    at, last = row + n, len(known.worth) - 1
    places = known.lattices.of(at + 1)

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        (z, weight), y, past = node, x, carry
        for number in range(n):
            y, past = _step(solver, denoise, process, y, past, of_row(row + number), z[number])
        begin = _corrected(solver, denoise, process, y, past, of_row(at))
        other, _ = _step(_Trapezoid(of=solver), denoise, process, begin, (), of_row(at, known.rule), z[n])
        end, past = _step(solver, denoise, process, y, past, of_row(at), z[n])

        def on_the_way() -> Array:
            later = _corrected(solver, denoise, process, end, past, of_row(at + 1))
            return interpolated(known.worth[at + 1], places, later) - interpolated(known.worth[at + 1], places, other)

        at_the_end = lambda: observables(end) - observables(other)
        return total + weight * jax.lax.cond(at < last, on_the_way, at_the_end), None

    return jax.lax.scan(add, jnp.zeros((len(x), 6), x.dtype), _noise_rule(n + 1, x.dtype))[0]


@partial(jax.jit, static_argnames="points")
def _known(solver: StochasticMultistep, process: Process, target: Distribution, grid: Array, points: int) -> _Known:
    rule, denoise, plan = _Trapezoid(of=solver), target.denoiser(process), solver.plan(process, grid)
    places = lattices(rule, process, target, grid)
    worth = worths(rule, process, target, grid, places, points)
    known = _Known(jnp.zeros(6, grid.dtype), places, worth, rule.plan(process, grid))
    x = square(*places.of(0), points)
    carry, begin = solver.init(x), worth[0]
    for number in range(lookback(solver)):
        begin = begin + _defect(solver, denoise, process, plan, known, x, carry, jnp.asarray(0), number)
    end = lattice_mean(target, process, grid[-1], places.of(-1), observables(square(*places.of(-1), points)))
    return known._replace(error=lattice_mean(target, process, grid[0], places.of(0), begin) - end)


@jax.jit
def _defects(
    key: Array,
    solver: StochasticMultistep,
    process: Process,
    target: Distribution,
    grid: Array,
    known: _Known,
    offset: Array,
) -> Array:
    """The sums of the other defects along paths [PATHS, 6], of every `STRIDE`-th row from `offset` on."""
    start, noise = jax.random.split(key)
    denoise, plan = target.denoiser(process), solver.plan(process, grid)
    x = marginal_draws(start, process, target, grid[0], PATHS)
    carry = solver.init(x)
    n, last = lookback(solver), len(grid) - 2

    def forth(state: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], Array]:
        z = jax.random.normal(jax.random.fold_in(noise, row), x.shape, x.dtype)
        defect = lambda row: _defect(solver, denoise, process, plan, known, *state, row, n)
        nothing = lambda row: jnp.zeros((PATHS, 6), x.dtype)
        found = jax.lax.cond((row + n <= last) & (row % STRIDE == offset), defect, nothing, row)
        return _step(solver, denoise, process, *state, jax.tree.map(lambda leaf: leaf[row], plan), z), found

    _, found = jax.lax.scan(forth, (x, carry), jnp.arange(last + 1))
    return found.sum(axis=0)


def multistep_weak_errors(
    solver: StochasticMultistep, process: Process, target: Distribution, grid: Array, points: int, batches: int = 1
) -> tuple[Array, Array]:
    """Errors [6] of the mean, the second moments and E |x|^4 at the grid's end, from the true law at its start, and
    the covariance [6, 6] of their estimate. The lattices have `points` along each side."""
    target = jax.tree.map(lambda leaf: jnp.asarray(leaf, grid.dtype), target)
    known = _known(solver, process, target, grid, points)
    errors, covariance = known.error, jnp.zeros((6, 6), grid.dtype)
    for offset in range(STRIDE):
        keys = [jax.random.fold_in(jax.random.key(6), batch * STRIDE + offset) for batch in range(batches)]
        drawn = [_defects(key, solver, process, target, grid, known, jnp.asarray(offset)) for key in keys]
        sums = jnp.concatenate(drawn)
        errors, covariance = errors + sums.mean(axis=0), covariance + jnp.cov(sums.T) / len(sums)
    return errors, covariance


def multistep_weak_error(
    solver: StochasticMultistep,
    process: Process,
    target: Distribution,
    grid: Array,
    *,
    resolution: float = 0.02,
    most: int = 2,
) -> tuple[float, float] | None:
    """The norm of `multistep_weak_errors` and its standard error, on the first lattices that differ, for one batch of
    paths, by less than a tenth of it from the ones before, with the batches that bring the standard error to
    `resolution` of the norm, or `most`; None if even the finest lattices differ by more, or if the error is not known
    to a tenth."""

    def found(points: int, batches: int) -> tuple[Array, float, float]:
        errors, covariance = multistep_weak_errors(solver, process, target, grid, points, batches)
        norm = float(jnp.linalg.norm(errors))
        return errors, norm, float(jnp.sqrt(errors @ covariance @ errors)) / norm

    coarse, *others = LATTICES
    before, _, _ = found(coarse, 1)
    for points in others:
        errors, norm, scatter = found(points, 1)
        if float(jnp.linalg.norm(errors - before)) < norm / 10:
            break
        before = errors
    else:
        return None
    if (batches := min(most, int(np.ceil((scatter / norm / resolution) ** 2)))) > 1:
        _, norm, scatter = found(points, batches)
    return (norm, scatter) if scatter < norm / 10 else None
