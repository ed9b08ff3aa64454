"""Searched grids: the times, and for a multistep method the weights, that suit one denoiser and one number of steps.

The error of a solver over a grid is a differentiable function of the grid's values and of the solver's weights, so both
are found by descent on the distance from a fine solution over a batch of starts (as in Bespoke solvers,
arXiv:2310.19075, and S4S, arXiv:2502.17423). The ends of the grid stay, steps keep their order, and weights still add
up to what is exact for constant data, so that any result is a consistent method. The result is a small JSON file.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, final

import jax
import jax.numpy as jnp
import optax

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.base import Solver
from jdiff.samplers.loop import integrate
from jdiff.samplers.multistep import Multistep, whole
from jdiff.typing import Array, Denoiser, Key


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tabulated(Multistep):
    """A multistep method whose weights are given, for the one grid that they were searched with."""

    space: Literal["x0", "eps"] = dataclasses.field(metadata={"static": True})
    """Which prediction the weights combine."""
    mix: Array
    """Factors [m, k - 1] of the differences of earlier values from the newest."""

    order: ClassVar[int] = 1

    @property
    def memory(self) -> int:
        return self.mix.shape[1] + 1

    def weights(self, process: Process, grid: Array) -> Array:
        if self.mix.shape[0] != grid.shape[0] - 1:
            raise ValueError(f"these weights are for a grid of {self.mix.shape[0] + 1} times, got {grid.shape[0]}")
        return jnp.asarray(self.mix, grid.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchedGrid:
    """A grid as it was found, with what it was found for. Called as any other grid: (process, n, dtype) -> [n]."""

    process: str
    """`repr` of the process."""
    solver: str
    """Name of the solver that it was searched with."""
    times: tuple[float, ...]
    """The decreasing times."""
    space: Literal["x0", "eps"] | None = None
    """Where weights were searched, too: which prediction they combine."""
    mix: tuple[tuple[float, ...], ...] | None = None
    """And the weights, one row a step, of the differences of earlier values from the newest."""
    about: str = ""
    """Target, number of starts and error, for people."""

    def __call__(self, process: Process, n: int, dtype=jnp.float32) -> Array:
        """The grid [n]. Raises ValueError for another process or number of times than it was searched for."""
        if repr(process) != self.process:
            raise ValueError(f"this grid was searched for {self.process}, got {process!r}")
        if n != len(self.times):
            raise ValueError(f"this grid has {len(self.times)} times, got n = {n}")
        return jnp.asarray(self.times, dtype)

    def method(self, solver: Solver) -> Solver:
        """The solver with the searched weights, if weights were searched; else the solver itself."""
        if self.mix is None or self.space is None:
            return solver
        return Tabulated(space=self.space, mix=jnp.asarray(self.mix))

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        os.replace(part, path)


def load_grid(path: Path) -> SearchedGrid:
    """The grid of a file that `save` wrote. Raises ValueError where it is not one."""
    try:
        values = json.loads(path.read_text())
        found = SearchedGrid(**values)
        mix = None if found.mix is None else tuple(map(tuple, found.mix))
        found = dataclasses.replace(found, times=tuple(found.times), mix=mix)
        if len(found.times) < 2 or (mix is not None and len(mix) != len(found.times) - 1):
            raise ValueError(f"{len(found.times)} times and {len(mix or ())} rows of weights")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a searched grid: {error}") from None
    return found


class _Free(NamedTuple):
    widths: Array  # [m]: logarithms of the steps' shares of the span
    turn: Array  # [m, k - 1]: what is moved from the newest value to an older one, in units of the step's whole weight


def search(
    keys: Key,
    denoise: Denoiser,
    process: Process,
    solver: Solver,
    name: str,
    x: Array,
    exact: Array,
    starts: Sequence[Array],
    *,
    weights: bool,
    iterations: int = 1000,
    rate: float = 0.03,
    report: Callable[[int, float], None] = lambda iteration, error: None,
) -> SearchedGrid:
    """The grid with the least error found, from the best of some grids to start from, all of one length n.

    Args:
      keys: one key a sample, [B]; of no effect on a deterministic solver.
      denoise: (x [B, ...], t []) -> Prediction, differentiable.
      solver: the method; `name` is what it is called in the file.
      x: states [B, ...] at the process's t_max, in the dtype of the search.
      exact: where the fine solution takes them, at t_min.
      starts: grids [n] to start from; each is improved for a tenth of the iterations, and the best goes on.
      weights: search the weights of a `Multistep` solver, too.
      iterations: steps of Adam, whose rate falls from `rate` to zero along a cosine.
      report: told the number of the step and the error, the root mean square over all values.

    Raises ValueError for grids of different lengths, or weights of a solver that has none.
    """
    if len({len(grid) for grid in starts}) != 1:
        raise ValueError(f"the grids to start from must have one length, got {[len(grid) for grid in starts]}")
    if weights and not isinstance(solver, Multistep):
        raise ValueError(f"weights are searched for a linear multistep method, got {solver}")
    t_min, t_max = process.time_span
    ends = jnp.asarray([t_max, t_min], x.dtype)
    # Steps are shares of the span of log-SNR or, where that is infinite, of time.
    finite = bool(jnp.isfinite(process.log_snr(ends)).all())
    to, back = (process.log_snr, process.time) if finite else (lambda t: t, lambda u: u)

    def grid_of(free: _Free) -> Array:
        begin, end = to(ends)
        inner = begin + jnp.cumsum(jax.nn.softmax(free.widths))[:-1] * (end - begin)
        return jnp.concatenate([ends[:1], back(inner), ends[1:]])

    def method_of(free: _Free, grid: Array) -> Solver:
        if not weights or not isinstance(solver, Multistep):
            return solver
        mix = solver.weights(process, grid)
        # A value that is not there yet keeps its weight of zero.
        there = jnp.arange(mix.shape[0])[:, None] > jnp.arange(mix.shape[1])
        moved = jnp.where(there, free.turn, 0) * whole(process, grid, solver.space)[:, None]
        return Tabulated(space=solver.space, mix=mix + moved)

    def loss(free: _Free) -> Array:
        grid = grid_of(free)
        end = integrate(keys, x, denoise, process, method_of(free, grid), grid)
        return jnp.log(jnp.mean((end - exact) ** 2)) / 2  # its logarithm: Adam's steps suit any size of error

    def free_of(grid: Array) -> _Free:
        span = jnp.abs(jnp.diff(to(grid.astype(x.dtype).at[jnp.array([0, -1])].set(ends))))
        return _Free(jnp.log(span / span.sum()), jnp.zeros((len(grid) - 1, memory - 1), x.dtype))

    memory = solver.memory if isinstance(solver, Multistep) else 1
    value_and_grad = jax.value_and_grad(loss)

    def descend(free: _Free, steps: int, told: int) -> tuple[_Free, float]:
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, steps)))

        @jax.jit
        def update(free, state, best, least):
            value, slope = value_and_grad(free)
            better = value < least
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), free, best)
            change, state = optimizer.update(slope, state)
            return optax.apply_updates(free, change), state, best, jnp.where(better, value, least)

        state, best, least = optimizer.init(free), free, jnp.asarray(jnp.inf, x.dtype)
        for step in range(steps):
            free, state, best, least = update(free, state, best, least)
            if (told + step) % 50 == 0:
                report(told + step, float(jnp.exp(least)))
        return best, float(least)

    first = max(1, iterations // 10)
    tried = [descend(free_of(grid), first, 0) for grid in starts]
    best, least = descend(min(tried, key=lambda one: one[1])[0], iterations, first)
    grid = grid_of(best)
    method = method_of(best, grid)
    found = SearchedGrid(process=repr(process), solver=name, times=tuple(grid.tolist()))
    report(first + iterations, float(jnp.exp(jnp.asarray(least))))
    if isinstance(method, Tabulated):
        return dataclasses.replace(found, space=method.space, mix=tuple(map(tuple, method.mix.tolist())))
    return found
