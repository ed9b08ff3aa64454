"""Sampling: the prior, one `lax.scan` of a solver over a grid of times, then the data predicted at the last."""

from typing import Any

import jax
import jax.numpy as jnp

from jdiff import rng
from jdiff.processes import Process
from jdiff.samplers.base import Solver
from jdiff.typing import Array, Denoiser, Key


def sample(
    keys: Key,
    denoise: Denoiser,
    process: Process,
    solver: Solver,
    grid: Array,
    shape: tuple[int, ...],
    *,
    denoise_last: bool = True,
    trajectory: bool = False,
) -> Any:
    """Samples [B, *shape] in the grid's dtype; row b is drawn from keys[b] alone.

    Args:
      keys: one key a sample, [B]: `rng.per_example(key, sample_index)`.
      denoise: (x [B, *shape], t []) -> Prediction, with conditions closed over (`guidance.py`).
      grid: decreasing times [n], n >= 2 (`grids.py`). Its values are traced.
      denoise_last: return the data predicted at grid[-1], at the cost of one more evaluation, rather than x there.
      trajectory: return (samples, path), where path [n, B, *shape] holds x at every time of the grid.

    Under `jax.jit`, new keys, grid values, conditions or guidance of the same shapes compile nothing.
    """
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(f"grid must have shape [n] with n >= 2, got {grid.shape}")
    if keys.ndim != 1:
        raise ValueError(f"keys must have shape [B], one key a sample, got {keys.shape}")
    x = jax.vmap(lambda key: process.prior(key, shape, grid.dtype))(rng.named(keys, "prior"))
    noise_keys = rng.named(keys, "solver")

    def step(state, times):
        x, carry = state
        number, t, s = times
        x, carry = solver.step(denoise, process, x, carry, t, s, rng.numbered(noise_keys, number))
        return (x, carry), (x if trajectory else ())

    numbers = jnp.arange(grid.shape[0] - 1)
    (last, _), path = jax.lax.scan(step, (x, solver.init(x)), (numbers, grid[:-1], grid[1:]))
    result = denoise(last, grid[-1]).x0 if denoise_last else last
    return (result, jnp.concatenate([x[None], jnp.asarray(path)])) if trajectory else result
