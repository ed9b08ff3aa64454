"""What the tests of solvers share: smooth targets, grids, exact ends, and noise handed in as numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from jdiff import oracles, rng
from jdiff.processes import EDM, VP, Process, RectifiedFlow
from jdiff.samplers import SOLVERS, Noise, integrate
from tests.table import anisotropic, two_modes
from tests.test_prediction import raw_output

ODE = {name: solver for name, solver in SOLVERS.items() if solver.strong_order is None and not solver.stochastic}
SDE = {name: solver for name, solver in SOLVERS.items() if name not in ODE}
# What these programs compute is small, and compiling them is what takes time.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
PARTS = 3  # the most draws of one kind that a step of any solver makes
# Spans over which a few dozen steps are in the asymptotic regime: the process and the time to start from.
SMOOTH = {
    "vp": (VP(t_min=0.05), 0.9),
    "edm": (EDM(sigma_min=0.1, sigma_max=4.0), 4.0),
    "flow": (RectifiedFlow(t_min=0.05), 0.9),
}


def as_two(target):
    """A Gaussian as two equal components, so that one compiled program serves both targets."""
    if target.means.shape[0] == 2:
        return target
    half = jnp.log(jnp.full(2, 0.5, target.means.dtype))
    twice = [jnp.tile(part, (2,) + (1,) * (part.ndim - 1)) for part in (target.means, target.vectors, target.values)]
    return oracles.Mixture(half, *twice)


SMOOTH_TARGETS = {"gaussian": lambda: as_two(anisotropic()), "mixture": lambda: two_modes()}


def grid_between(process, start, n):
    """n equal steps in log-SNR from `start` to t_min, float64."""
    ends = process.log_snr(jnp.array([start, process.time_span[0]]))
    return process.time(jnp.linspace(ends[0], ends[1], n + 1))


def marginal(process, t, target):
    """Mean and covariance of x_t."""
    mean, covariance = target.moments()
    return process.alpha(t) * mean, process.alpha(t) ** 2 * covariance + process.sigma(t) ** 2 * jnp.eye(2)


def starts(process, start, target, n):
    """Points [n, 2] that are spread like x at `start`."""
    mean, covariance = marginal(process, start, target)
    z = jax.random.normal(jax.random.key(0), (n, 2), jnp.float64)
    return mean + z @ jnp.linalg.cholesky(covariance).T


@functools.cache
def exact_end(process_name, target_name, n=32):
    """Starts [n, 2] and where the probability-flow ODE takes them, by an adaptive integrator of order 8."""
    (process, start), target = SMOOTH[process_name], SMOOTH_TARGETS[target_name]()
    x = starts(process, start, target, n)
    velocity = jax.jit(lambda t, x: target.predict(process, x.reshape(-1, 2), t).velocity(process, t).ravel())
    path = solve_ivp(velocity, (start, process.time_span[0]), np.ravel(x), method="DOP853", rtol=1e-12, atol=1e-13)
    return x, path.y[:, -1].reshape(-1, 2)


def keys_of(n, seed=0):
    return rng.per_example(jax.random.key(seed), jnp.arange(n))


@functools.cache
def runner(solver):
    """(process, target, x, grid) -> x at the grid's end, compiled once a solver and shape."""
    run = lambda process, target, x, grid: integrate(
        keys_of(len(x)), x, target.denoiser(process), process, solver, grid
    )
    return jax.jit(run, compiler_options=FAST)


def measured_order(steps, errors):
    """The slope of log error over log steps, by least squares."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def handed_in(between, fresh):
    """A source of noise that reads arrays [steps, parts, B, ...] by the step's number and the part."""
    return lambda keys, process, like: (
        lambda number: Noise(
            between=lambda t, s, part=0: between[number, part], fresh=lambda part=0: fresh[number, part]
        )
    )


def exact_denoiser(process, target, number):
    return target.denoiser(process)


@functools.cache
def moments_at_the_end(solver, denoiser=exact_denoiser):
    """(process, target, grid, number=0) -> mean [2] and covariance [2, 2] at the grid's end, for a Gaussian target.

    They are exact: from the true marginal at grid[0], every solver is affine in its start and its noise, so that the
    covariance is that of a linear map of standard normal numbers, which is read off by differentiation. The denoiser
    is that of denoiser(process, target, number).
    """

    def run(process, target, grid, number=0):
        mean, covariance = marginal(process, grid[0], target)
        root = jnp.linalg.cholesky(covariance)
        denoise = denoiser(process, target, number)
        rows = jax.tree.leaves(jax.eval_shape(lambda: solver.plan(process, grid)))[0].shape[0]

        inputs = 2 + 2 * rows * PARTS * 2
        probes = jnp.concatenate([jnp.zeros((1, inputs)), jnp.eye(inputs)])
        z0, between, fresh = jnp.split(probes, [2, 2 + rows * PARTS * 2], axis=1)
        table = lambda part: part.reshape(-1, rows, PARTS, 2).transpose(1, 2, 0, 3)
        ends = integrate(
            keys_of(len(probes)),
            mean + z0 @ root.T,
            denoise,
            process,
            solver,
            grid,
            noise=handed_in(table(between), table(fresh)),
        )
        slopes = ends[1:] - ends[0]
        return ends[0], slopes.T @ slopes

    return jax.jit(run, compiler_options=FAST)


def _one_of(name):
    def method(self, t):
        t = jnp.asarray(t)
        return jax.lax.switch(self.number, [getattr(process, name) for process in self.processes], t)

    return method


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OneOf(Process):
    """Process number `number` of several, which is traced: one compiled program serves all of them."""

    number: jax.Array
    processes: tuple[Process, ...]

    @property
    def time_span(self):
        spans = [process.time_span for process in self.processes]
        return tuple(jnp.asarray(ends)[self.number] for ends in zip(*spans, strict=True))

    alpha, sigma, log_snr, time = map(_one_of, ("alpha", "sigma", "log_snr", "time"))
    alpha_slope, sigma_slope, noise_label = map(_one_of, ("alpha_slope", "sigma_slope", "noise_label"))


def through(target, process, parameterizations, number):
    """The exact denoiser of a target, said by parameterization number `number` (traced) and understood again."""

    def branch(name, parameterization):
        def denoise(x, t):
            exact = target.predict(process, x, t)
            raw = raw_output(name, process, exact.x0, exact.eps, t)
            return parameterization.prediction(process, raw, x, t)

        return denoise

    branches = [branch(*item) for item in parameterizations.items()]
    return lambda x, t: jax.lax.switch(number, branches, x, jnp.broadcast_to(t, x.shape[:1]))
