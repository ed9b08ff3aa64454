"""From a network's parameters and a state to the end of a schedule, compiled once a solver and number of steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdiff import guidance, rng
from jdiff.interop.schedulers import Schedule
from jdiff.models import Network
from jdiff.prediction import Prediction, predictor
from jdiff.processes import Process, match
from jdiff.samplers import SOLVERS, Limit, Solver, Tabulated, checked, integrate
from jdiff.typing import Array, Cond, Denoiser, Key, Params, Time


class Plan(NamedTuple):
    """Sampler of a schedule over a number of steps; a pytree of values."""

    process: Process
    solver: Solver
    grid: Array
    start: Array | float
    """Standard deviation of the first state."""
    label_scale: float
    """Factor from the process's noise label to the network's."""


def planned(schedule: Schedule, steps: int, solver: str | None, tokens: int | None = None) -> Plan:
    """The schedule's own sampler, or a solver of ours over the same levels.

    `tokens`: of the picture, for schedules that depend on its size. Raises ValueError for a name that is no solver, and
    for steps that the schedule has not.
    """
    if solver is None:
        table = schedule.table(steps, tokens)
        return Plan(table.process, table.solver, table.grid, table.start, 1.0)
    if solver not in SOLVERS:
        raise ValueError(f"solver: there is no {solver!r}; there are {', '.join(SOLVERS)}")
    process = schedule.process
    start = process.sigma(process.time_span[1])
    return Plan(process, SOLVERS[solver], schedule.grid(steps, tokens), start, schedule.label_scale)


def keys_of(seeds: Any) -> Key:
    """A key for each seed [n]."""
    return jnp.stack([rng.named(jax.random.key(seed), "sample") for seed in seeds])


def first_state(plan: Plan, keys: Key, shape: tuple[int, ...], given: Any) -> Array:
    """The state at the start [n, *shape]: `given`, or noise, row i from keys[i] alone.

    Raises ValueError for one of another shape."""
    if given is None:
        return plan.start * jax.vmap(lambda key: jax.random.normal(key, shape))(rng.named(keys, "prior"))
    x = jnp.asarray(given, jnp.float32)
    if x.shape != (len(keys), *shape):
        raise ValueError(f"latents: shape {x.shape}, these sizes take {(len(keys), *shape)}")
    return x


def limited(denoise: Denoiser, process: Process, limit: Limit) -> Denoiser:
    """The denoiser with limited data, and the noise that is then in x: a consistent prediction, for any solver."""

    def run(x: Array, t: Time) -> Prediction:
        prediction = denoise(x, t)
        x0 = limit(prediction.x0)
        eps = (x - match(process.alpha(t), x) * x0) / match(process.sigma(t), x)
        return Prediction(x0, eps, prediction.variance)

    return run


def drawing(network: Network, schedule: Schedule, guided: bool) -> Callable[..., Array]:
    """(params, keys, x, cond, null, scale, plan) -> x at the grid's end. All of these are values."""

    def draw(params: Params, keys: Key, x: Array, cond: Cond, null: Cond, scale: Array, plan: Plan) -> Array:
        apply = lambda x, label, cond: network.apply(params, x, plan.label_scale * label, cond)
        predict = predictor(apply, plan.process, schedule.parameterization)
        plain = lambda: guidance.unguided(predict, cond)
        denoise = guidance.classifier_free(predict, cond, null, scale) if guided else plain()
        if schedule.limit is not None and not isinstance(plan.solver, Tabulated):
            denoise = limited(denoise, plan.process, schedule.limit)
        return integrate(keys, x, denoise, plan.process, plan.solver, plan.grid)

    return checked(draw)
