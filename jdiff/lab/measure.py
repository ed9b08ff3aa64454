"""Errors of a solver against what is known, and the order that they show.

- `end_errors`: of the end point, for a method without noise; `errors_on_the_way`: and of the states before.
- `gaussian_moments`: mean and covariance at the end for a Gaussian target, exactly. Every solver is affine in its start
  and its noise there, so that the covariance is that of a linear map of standard normal numbers, read off unit vectors.
- `path_errors`: of the end point given the Brownian path, against a fine grid on the same path (strong error).

Brownian paths are those of `samplers.noise`: increments in the clock of the signal-to-noise ratio.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jdiff import rng
from jdiff.lab.problems import marginal
from jdiff.oracles import Distribution, Mixture
from jdiff.prediction import Parameterization, Prediction
from jdiff.processes import Process
from jdiff.samplers import Noise, Solver, integrate
from jdiff.samplers.noise import Source
from jdiff.typing import Array, Denoiser, Time

PARTS = 3  # the most draws of one kind that a step of any solver makes


class Order(NamedTuple):
    """The slope of log error over log steps, by least squares, and half the width of its 95 % confidence interval."""

    order: float
    half_width: float


def measured_order(
    steps: Sequence[int], errors: Sequence[float], standard_errors: Sequence[float] | None = None
) -> Order:
    """The order from three or more pairs. The interval is that of Student's t, for the scatter about the line, or that
    of the errors' own standard errors, where they are sampled."""
    (slope, _), covariance = np.polyfit(np.log(steps), np.log(errors), 1, cov=True)
    if standard_errors is None:
        return Order(-float(slope), float(np.sqrt(covariance[0, 0]) * stats.t.ppf(0.975, len(steps) - 2)))
    along = np.log(steps) - np.mean(np.log(steps))
    parts = along / np.sum(along**2) * np.divide(standard_errors, errors)
    return Order(-float(slope), float(stats.norm.ppf(0.975) * np.linalg.norm(parts)))


def keys_of(n: int) -> Array:
    """Keys [n] of the samples 0 to n - 1 of seed 0."""
    return rng.per_example(jax.random.key(0), jnp.arange(n))


def runner(solver: Solver) -> Callable[[Process, Distribution, Array, Array], Array]:
    """(process, target, x, grid) -> x at the grid's end, compiled once for a length of grid and a kind of target."""
    return jax.jit(
        lambda process, target, x, grid: integrate(keys_of(len(x)), x, target.denoiser(process), process, solver, grid)
    )


def _in_dtype(grid: Array, target: Distribution, x: Array) -> tuple[Distribution, Array]:
    """Target and states in the dtype of the grid."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, grid.dtype), (target, x))


def end_errors(
    solver: Solver, process: Process, target: Distribution, grids: Sequence[Array], x: Array, exact: np.ndarray
) -> list[float]:
    """Root mean square error, per coordinate, of where the solver takes x [n, 2] over each grid."""
    run = runner(solver)
    ends = [np.asarray(run(process, *_in_dtype(grid, target, x), grid), np.float64) for grid in grids]
    return [float(np.sqrt(np.mean((end - exact) ** 2))) for end in ends]


def errors_on_the_way(
    solver: Solver, process: Process, target: Distribution, grids: Sequence[Array], x: Array, exact: np.ndarray
) -> np.ndarray:
    """Root mean square errors [len(grids), k + 1], per coordinate, of the states on the way from x [n, 2] over each
    grid: at k + 1 times that all grids share, each k-th part of their steps, where `exact` [k + 1, n, 2] is right."""

    @jax.jit
    def run(target: Distribution, x: Array, grid: Array) -> Array:
        denoise, parts = target.denoiser(process), len(exact) - 1
        _, path = integrate(keys_of(len(x)), x, denoise, process, solver, grid, trajectory=True)
        if len(path) != len(grid) or (len(grid) - 1) % parts:
            raise ValueError(f"{len(grid) - 1} steps, in {len(path) - 1} rows of a plan, do not share {parts} times")
        return path[:: (len(grid) - 1) // parts]

    paths = [np.asarray(run(*_in_dtype(grid, target, x), grid), np.float64) for grid in grids]
    return np.stack([np.sqrt(np.mean((path - exact) ** 2, axis=(1, 2))) for path in paths])


def exact_denoiser(process: Process, target: Distribution, number: Array) -> Denoiser:
    """The target's own; `number` is for tests, which choose one of several ways to say the same."""
    return target.denoiser(process)


def through(parameterizations: Sequence[Parameterization]) -> Callable[..., Denoiser]:
    """(process, target, number) -> the exact denoiser, said by parameterization `number` (traced) and read again.

    What the perfect network returns is solved for: predictions are affine in the raw output.
    """

    def perfect(parameterization: Parameterization, process: Process, target: Distribution) -> Denoiser:
        def denoise(x: Array, t: Time) -> Prediction:
            exact = target.predict(process, x, t)
            zero, one = (parameterization.prediction(process, raw, x, t) for raw in (0 * x, 0 * x + 1))
            # Of the two parts, the one that the output moves more.
            slopes = [(one.x0 - zero.x0), (one.eps - zero.eps)]
            outputs = [(exact.x0 - zero.x0) / slopes[0], (exact.eps - zero.eps) / slopes[1]]
            raw = jnp.where(jnp.abs(slopes[0]) > jnp.abs(slopes[1]), *outputs)
            return parameterization.prediction(process, raw, x, t)

        return denoise

    def denoiser(process: Process, target: Distribution, number: Array) -> Denoiser:
        branches = [perfect(each, process, target) for each in parameterizations]
        return lambda x, t: jax.lax.switch(number, branches, x, jnp.broadcast_to(t, x.shape[:1]))

    return denoiser


def handed_in(between: Array, fresh: Array) -> Source:
    """A source of noise that reads arrays [steps, parts, B, ...] by the step's number and the part."""
    return lambda keys, process, like: (
        lambda number: Noise(
            between=lambda t, s, part=0: between[number, part], fresh=lambda part=0: fresh[number, part]
        )
    )


def gaussian_moments(
    solver: Solver, denoiser: Callable[..., Denoiser] = exact_denoiser
) -> Callable[..., tuple[Array, Array]]:
    """(process, Gaussian target, grid, number=0) -> mean [2] and covariance [2, 2] at the grid's end, exactly, from
    the true marginal at grid[0]. Compiled once for a length of grid."""

    def run(process: Process, target: Mixture, grid: Array, number: Array | int = 0) -> tuple[Array, Array]:
        mean, covariance = marginal(process, grid[0], target)
        root = jnp.linalg.cholesky(covariance)
        rows = jax.tree.leaves(jax.eval_shape(lambda: solver.plan(process, grid)))[0].shape[0]
        denoise = denoiser(process, target, number)

        def ends(z0: Array, between: Array, fresh: Array) -> Array:
            noise = handed_in(between, fresh)
            return integrate(keys_of(len(z0)), mean + z0 @ root.T, denoise, process, solver, grid, noise=noise)

        zeros = [jnp.zeros((rows, PARTS, 1, 2))] * 2
        if rows > 128:  # few outputs, many inputs: backwards
            every = jax.jacrev(ends, (0, 1, 2))(jnp.zeros((1, 2)), *zeros)
            slopes = jnp.concatenate([slope.reshape(2, -1) for slope in every], axis=1).T
            return ends(jnp.zeros((1, 2)), *zeros)[0], slopes.T @ slopes
        # A batch of unit vectors compiles in half the time.
        inputs = 2 + 2 * rows * PARTS * 2
        probes = jnp.concatenate([jnp.zeros((1, inputs)), jnp.eye(inputs)])
        z0, *tables = jnp.split(probes, [2, 2 + rows * PARTS * 2], axis=1)
        every = ends(z0, *(part.reshape(-1, rows, PARTS, 2).transpose(1, 2, 0, 3) for part in tables))
        slopes = every[1:] - every[0]
        return every[0], slopes.T @ slopes

    return jax.jit(run)


def moment_error(moments: tuple[Array, Array], process: Process, target: Distribution, t: float) -> float:
    """Distance of a mean and covariance from those of x_t: the sum of the norms of both differences."""
    return float(sum(np.linalg.norm(a - b) for a, b in zip(moments, marginal(process, t, target), strict=True)))


def _refuse(part: int = 0) -> Array:
    raise ValueError("a method of a strong order takes its noise from the path alone")


@partial(jax.jit, static_argnames="n")
def _paths(key: Array, process: Process, fine: Array, n: int) -> Array:
    """n Brownian paths in the clock of the signal-to-noise ratio, [m + 1, n, 2] at the times of `fine` [m + 1]."""
    drawn = jax.random.normal(key, (len(fine) - 1, n, 2), fine.dtype)
    steps = drawn * jnp.sqrt(jnp.diff(jnp.exp(process.log_snr(fine))))[:, None, None]
    return jnp.concatenate([jnp.zeros_like(steps[:1]), jnp.cumsum(steps, axis=0)])


@jax.jit
def _ends_on_paths(
    solver: Solver, process: Process, target: Distribution, fine: Array, path: Array, x: Array, grid: Array
) -> Array:
    """The end from x [n, 2], on paths known at the times of `fine`. The grid's times, and the solver's inner ones,
    must be among them."""
    clock = process.log_snr(fine)

    def between(t: Array, s: Array, part: int = 0) -> Array:
        begin, end = (jnp.argmin(jnp.abs(clock - process.log_snr(time))) for time in (t, s))
        return (path[end] - path[begin]) / jnp.sqrt(jnp.exp(clock[end]) - jnp.exp(clock[begin]))

    source: Source = lambda keys, process, like: lambda number: Noise(between=between, fresh=_refuse)
    return integrate(keys_of(len(x)), x, target.denoiser(process), process, solver, grid, noise=source)


def marginal_draws(key: Array, process: Process, target: Distribution, t: Array, n: int) -> Array:
    """n draws of x_t, [n, 2]."""
    data_key, noise_key = jax.random.split(key)
    x0 = target.sample(data_key, n)
    return process.perturb(x0, jax.random.normal(noise_key, x0.shape, x0.dtype), t)


def observables(x: Array) -> Array:
    """What weak errors are errors of the mean of, [n, 6]: both coordinates, their second powers and |x|^4."""
    square = jnp.sum(x**2, axis=1, keepdims=True)
    return jnp.concatenate([x, x**2, x[:, :1] * x[:, 1:], square**2], axis=1)


INNER = 6  # methods with inner times have them at halves or thirds of a step in log-SNR


def path_errors(
    solver: Solver,
    process: Process,
    target: Distribution,
    grid: Callable[[int], Array],
    steps: Sequence[int],
    *,
    paths: int = 256,
) -> list[float]:
    """Strong error over grid(n) for each n of `steps`: mean distance from the solver itself on a grid eight times finer
    than the finest, on the same paths. Each n must divide the greatest, and grid be even in log-SNR."""
    finest = 8 * max(steps)
    fine = grid(INNER * finest)
    x = marginal_draws(jax.random.key(1), process, target, fine[0], paths)
    path = _paths(jax.random.key(2), process, fine, paths)
    run = lambda n: _ends_on_paths(solver, process, target, fine, path, x, grid(n))
    reference = run(finest)
    return [float(jnp.linalg.norm(run(n) - reference, axis=1).mean()) for n in steps]


def sampled_moment_error(
    solver: Solver, process: Process, target: Distribution, grid: Array, x: Array
) -> tuple[float, float]:
    """Distance of the mean and covariance at the grid's end, from states x [n, 2] at its start, from those of the
    target there; and the distance that n draws of the target itself would have, for scale."""
    end = runner(solver)(process, *_in_dtype(grid, target, x), grid)
    moments = lambda x: (x.mean(axis=0), jnp.cov(x.T))
    t = float(grid[-1])
    own = marginal_draws(jax.random.key(5), process, target, jnp.asarray(t, x.dtype), len(x))
    return (
        moment_error(moments(end.astype(x.dtype)), process, target, t),
        moment_error(moments(own), process, target, t),
    )


def steps_for(solver: Solver, nfe: int) -> int:
    """The most steps that need no more than `nfe` evaluations; 0 if one needs more."""
    steps = 0
    while solver.nfe(steps + 1) <= nfe:
        steps += 1
    return steps
