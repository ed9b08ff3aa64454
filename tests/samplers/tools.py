"""What the tests of solvers share: smooth targets, grids, exact ends, and noise handed in as numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jdiff import lab, oracles
from jdiff.lab import measure
from jdiff.lab.measure import exact_denoiser, handed_in, keys_of
from jdiff.lab.problems import marginal
from jdiff.processes import EDM, VP, Process, RectifiedFlow
from jdiff.pytree import pytree
from jdiff.samplers import OTHER_NAMES, SOLVERS, log_snr
from tests.table import anisotropic, two_modes
from tests.test_prediction import raw_output

__all__ = ["handed_in", "keys_of", "marginal"]  # from the lab, for the tests of solvers

DISTINCT = {name: solver for name, solver in SOLVERS.items() if name not in OTHER_NAMES}
ODE = {name: solver for name, solver in DISTINCT.items() if solver.strong_order is None and not solver.stochastic}
SDE = {name: solver for name, solver in DISTINCT.items() if name not in ODE}
# Spans over which a few dozen steps are in the asymptotic regime: the process and the time to start from.
SMOOTH = {
    "vp": (VP(t_min=0.05), 0.9),
    "edm": (EDM(sigma_min=0.1, sigma_max=4.0), 4.0),
    "flow": (RectifiedFlow(t_min=0.05), 0.9),
}
# Starts at which data do less, for methods of high order whose first steps, of lower order, would count otherwise.
FROM_NOISE = {"vp_from_noise": (VP(t_min=0.05), 1.0), "vp_from_more_noise": (VP(t_min=0.05, beta_max=40.0), 1.0)}


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


def even_grid(process, n):
    """n times in equal steps of log-SNR over the whole span; from zero SNR, a first step leads to e^-8. float64."""
    t_min, t_max = process.time_span
    if jnp.isfinite(process.log_snr(jnp.asarray(t_max))):
        return log_snr(process, n, dtype=jnp.float64)
    rest = process.time(jnp.linspace(-8, process.log_snr(jnp.asarray(t_min)), n - 1))
    return jnp.concatenate([jnp.full(1, t_max), rest.at[-1].set(t_min)])


def starts(process, start, target, n):
    """Points [n, 2] that are spread like x at `start`."""
    mean, covariance = marginal(process, start, target)
    z = jax.random.normal(jax.random.key(0), (n, 2), jnp.float64)
    return mean + z @ jnp.linalg.cholesky(covariance).T


@functools.cache
def exact_end(process_name, target_name, n=32):
    """Starts [n, 2] and where the probability-flow ODE takes them."""
    (process, start), target = (SMOOTH | FROM_NOISE)[process_name], SMOOTH_TARGETS[target_name]()
    x = starts(process, start, target, n)
    return x, lab.exact_end(target, process, x, start, process.time_span[0], rtol=1e-13)


def measured_order(steps, errors):
    """The slope of log error over log steps."""
    return lab.measured_order(steps, errors).order


@functools.cache
def runner(solver):
    """(process, target, x, grid) -> x at the grid's end, compiled once a solver and shape."""
    return measure.runner(solver)


@functools.cache
def moments_at_the_end(solver, denoiser=exact_denoiser):
    """(process, Gaussian target, grid, number=0) -> exact mean and covariance at the grid's end."""
    return measure.gaussian_moments(solver, denoiser)


def _one_of(name):
    @jax.jit  # traced once for all solvers
    def method(self, t):
        return jax.lax.switch(self.number, [getattr(process, name) for process in self.processes], t)

    return lambda self, t: method(self, jnp.asarray(t))


@pytree
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


class AtOneTime(Process):
    """What a process is at a time t [B], read once: read at every use, it would be most of a compiled program.

    At other times [n, B], each the same for the whole batch, it is the process.
    """

    def __init__(self, process, t):
        self.process = process
        names = ("alpha", "sigma", "alpha_slope", "sigma_slope")
        self.values = {name: jnp.broadcast_to(getattr(process, name)(t[0]), t.shape) for name in names}

    @property
    def time_span(self):
        return self.process.time_span

    def alpha(self, t):
        return self.values["alpha"] if t.ndim == 1 else self.process.alpha(t[:, :1])

    def sigma(self, t):
        return self.values["sigma"] if t.ndim == 1 else self.process.sigma(t[:, :1])

    alpha_slope, sigma_slope = (lambda self, t, name=name: self.values[name] for name in ("alpha_slope", "sigma_slope"))
    time = log_snr = None  # type: ignore[assignment]


def through(target, process, parameterizations, number):
    """The exact denoiser of a target, said by parameterization number `number` (traced) and understood again."""

    def denoise(x, t):
        t = jnp.broadcast_to(t, x.shape[:1])
        now = AtOneTime(process, t)
        exact = target.predict(now, x, t)

        def branch(name, parameterization):
            return lambda: parameterization.prediction(now, raw_output(name, now, exact.x0, exact.eps, t), x, t)

        return jax.lax.switch(number, [branch(*item) for item in parameterizations.items()])

    return denoise
