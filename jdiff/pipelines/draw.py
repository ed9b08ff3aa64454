"""From a network's parameters and a state to the end of a grid, compiled once for a solver."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdiff import guidance, rng
from jdiff.interop.schedulers import Schedule
from jdiff.models import Network
from jdiff.prediction import Prediction, predictor
from jdiff.samplers import SOLVERS, checked, integrate
from jdiff.typing import Array, Cond, Denoiser, Key, Params, Time


def with_solver(schedule: Schedule, name: str | None) -> Schedule:
    """The schedule with another solver. Raises ValueError for a name that is none."""
    if name is None:
        return schedule
    if name not in SOLVERS:
        raise ValueError(f"solver: there is no {name!r}; there are {', '.join(SOLVERS)}")
    return schedule._replace(solver=SOLVERS[name])


def keys_of(seeds: Any) -> Key:
    """A key for each seed [n]."""
    return jnp.stack([rng.named(jax.random.key(seed), "sample") for seed in seeds])


def first_state(schedule: Schedule, keys: Key, shape: tuple[int, ...], given: Any) -> Array:
    """The state at the start [n, *shape]: `given`, or a draw from the prior, row i from keys[i] alone.

    Raises ValueError for one of another shape."""
    if given is None:
        return jax.vmap(lambda key: schedule.process.prior(key, shape))(rng.named(keys, "prior"))
    x = jnp.asarray(given, jnp.float32)
    if x.shape != (len(keys), *shape):
        raise ValueError(f"latents: shape {x.shape}, these sizes take {(len(keys), *shape)}")
    return x


def drawing(network: Network, schedule: Schedule, guided: bool) -> Callable[..., Array]:
    """(params, keys, x, cond, null, scale, grid) -> x at the grid's end. All of these are values.

    Where the schedule clips, the predicted data is clipped and the predicted noise is not, as published."""

    def clipped(denoise: Denoiser, limit: float) -> Denoiser:
        def run(x: Array, t: Time) -> Prediction:
            found = denoise(x, t)
            return Prediction(jnp.clip(found.x0, -limit, limit), found.eps, found.variance)

        return run

    def draw(params: Params, keys: Key, x: Array, cond: Cond, null: Cond, scale: Array, grid: Array) -> Array:
        apply = lambda x, label, cond: network.apply(params, x, schedule.label_scale * label, cond)
        predict = predictor(apply, schedule.process, schedule.parameterization)
        plain = lambda: guidance.unguided(predict, cond)
        denoise = guidance.classifier_free(predict, cond, null, scale) if guided else plain()
        denoise = denoise if schedule.clip is None else clipped(denoise, schedule.clip)
        return integrate(keys, x, denoise, schedule.process, schedule.solver, grid)

    return checked(draw)
