"""Sampling: the prior, one `lax.scan` of a solver over the plan of its steps, then the data predicted at the end."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental import checkify

from jdiff import rng
from jdiff.processes import Process
from jdiff.samplers.base import Solver, evaluate
from jdiff.samplers.noise import Source, independent
from jdiff.typing import Array, Denoiser, Key


def check(condition: Array, message: str, **values: Array) -> None:
    """Raises ValueError where the condition is known; of a traced one, within `checked`."""
    if isinstance(condition, Tracer):
        checkify.debug_check(condition, message, **values)
    elif not condition:
        raise ValueError(message.format(**values))


def _check_grid(process: Process, solver: Solver, grid: Array) -> None:
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(f"grid must have shape [n] with n >= 2, got {grid.shape}")
    falls, rises = (jnp.diff(grid) < 0).all(), (jnp.diff(grid) > 0).all() & jnp.logical_not(solver.stochastic)
    check(
        falls | rises,
        "the grid's times must decrease from each to the next (or increase, for a method without noise), got {grid}",
        grid=grid,
    )
    # Where a process's ends are not representable in the grid's dtype, they are rounded; zero is the data.
    low, high = (jnp.asarray(end, grid.dtype) for end in process.time_span)
    slack = 8 * jnp.finfo(grid.dtype).eps * jnp.asarray(high)
    inside = (grid <= high + slack) & ((grid >= low - slack) | (grid == 0))
    check(
        inside.all(),
        f"the grid's times must lie in the span of {type(process).__name__}, from {{low}} to {{high}}, got {{grid}}",
        low=low,
        high=high,
        grid=grid,
    )


def _check_signal(process: Process, solver: Solver, start: Array) -> None:
    """A step from a time without signal is refused, where the solver has no answer."""
    if solver.needs_signal:
        check(
            process.alpha(start) > 0,
            f"{type(solver).__name__} cannot start at t = {{start}}, where the signal-to-noise ratio is zero; it must "
            "be positive at the grid's first time",
            start=start,
        )


def integrate(
    keys: Key,
    x: Array,
    denoise: Denoiser,
    process: Process,
    solver: Solver,
    grid: Array,
    *,
    noise: Source = independent,
    trajectory: bool = False,
) -> Any:
    """x [B, ...] taken from grid[0] to grid[-1]; row b draws its noise from keys[b] alone.

    Args:
      keys: one key a sample, [B].
      x: the state at grid[0]; its dtype is the grid's.
      denoise: (x [B, ...], t []) -> Prediction, with conditions closed over (`guidance.py`).
      grid: decreasing times [n], n >= 2 (`grids.py`). Its values are traced. Increasing times run a deterministic
        solver towards more noise (DDIM inversion, arXiv:2105.05233).
      noise: `independent` draws at each step, or the increments of one `brownian` path.
      trajectory: return (x, path), where path [m + 1, B, ...] holds the states before and after each of the m steps
        of the solver's plan (n - 1, unless the solver says otherwise).

    Under `jax.jit`, new keys, grid values, conditions or guidance of the same shapes compile nothing. Raises ValueError
    for wrong shapes, a grid that is not monotone or leaves the process's span (traced values only within `checked`).
    """
    if keys.ndim != 1 or keys.shape != x.shape[:1]:
        raise ValueError(f"keys must have shape [B], one key a sample, got {keys.shape} for x of shape {x.shape}")
    _check_grid(process, solver, grid)
    _check_signal(process, solver, grid[0])
    noise_of = noise(rng.named(keys, "solver"), process, x)

    def step(state, row):
        x, carry = state
        number, plan = row
        x, carry = solver.step(denoise, process, x, carry, plan, noise_of(number))
        return (x, carry), (x if trajectory else ())

    plan = solver.plan(process, grid)
    numbers = jnp.arange(jax.tree.leaves(plan)[0].shape[0])
    (last, _), path = jax.lax.scan(step, (x, solver.init(x)), (numbers, plan))
    return (last, jnp.concatenate([x[None], jnp.asarray(path)])) if trajectory else last


def sample(
    keys: Key,
    denoise: Denoiser,
    process: Process,
    solver: Solver,
    grid: Array,
    shape: tuple[int, ...],
    *,
    noise: Source = independent,
    denoise_last: bool = True,
    trajectory: bool = False,
) -> Any:
    """Samples [B, *shape] in the grid's dtype; row b is drawn from keys[b] alone.

    The prior's draw, taken over the grid by `integrate`, whose arguments these are.

    Args:
      keys: one key a sample, [B]: `rng.per_example(key, sample_index)`.
      denoise_last: return the data predicted at grid[-1], at the cost of one more evaluation, rather than x there.
    """
    if keys.ndim != 1:
        raise ValueError(f"keys must have shape [B], one key a sample, got {keys.shape}")
    x = jax.vmap(lambda key: process.prior(key, shape, grid.dtype))(rng.named(keys, "prior"))
    out = integrate(keys, x, denoise, process, solver, grid, noise=noise, trajectory=trajectory)
    last, path = out if trajectory else (out, None)
    result = evaluate(denoise, process, last, grid[-1])[1].x0 if denoise_last else last
    return (result, path) if trajectory else result


class checked:  # noqa: N801, used as jax.jit is
    """`jax.jit(run)` with the checks of traced values switched on: a `run` that samples or integrates.

    When called, it raises ValueError for a grid that is not monotone or leaves the process's span, and for a denoiser's
    value that is not finite, naming sample, time and value.
    """

    def __init__(self, run: Callable[..., Any]):
        self._compiled = jax.jit(checkify.checkify(run))

    def __call__(self, *args: Any) -> Any:
        error, out = self._compiled(*args)
        if message := error.get():
            raise ValueError(message.split(" (`check` failed)")[0])
        return out

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """As that of what `jax.jit` returns, for arguments that may be abstract."""
        return self._compiled.lower(*args)
