"""Linear multistep methods for the reverse SDE: `multistep.py` with noise.

Let l = log(alpha / sigma). The reverse SDE whose noise is tau times that of the time reversal (tau = 0 is the
probability-flow ODE) is solved from t to s by (arXiv:2309.05019, eq. 14; arXiv:2211.01095, eq. 12)

    x_s = (sigma_s / sigma_t) f(l_t) x_t - alpha_s int x0 dw + sigma_s sqrt(1 - f(l_t)^2) z,   w(l) = e^(l - l_s) f(l),

where f(l) = exp(-int_l^{l_s} tau^2) says what is left at s of the noise that was there at l. A method replaces x0 by
the polynomial through its values at the step's start and before. One standard normal number a step is the exact
stochastic integral for a constant x0: so the strong order is 1 for all of them. The values carry the noise of the steps
before: where a step in l is several times as long as the one before, extrapolation multiplies it, and grids whose last
steps grow so (equal steps of t) want a single-step method.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.processes.base import slope
from jdiff.samplers.base import Noise, Solver, evaluate
from jdiff.samplers.multistep import half_log_snr, lagrange, past, quadrature
from jdiff.typing import Array, Denoiser

# (l [m, q], end [m, 1]) -> log f(l) for the steps that end at `end`, never positive.
LogFade = Callable[[Array, Array], Array]


class StochasticWeights(NamedTuple):
    """The plan of a stochastic multistep method, m steps over k values."""

    t: Array  # [m]: where the steps begin
    s: Array  # [m]: where they end
    keep: Array  # [m]: factors of x_t
    mix: Array  # [m, k]: factors of the values, the newest first
    spread: Array  # [m]: standard deviations of the noise


class StochasticMultistep(Solver):
    """A multistep method for the reverse SDE, which is its weights and its noise."""

    memory: int  # k: the number of values that a step combines
    strong_order = 1.0
    nfe_per_step = 1

    @abc.abstractmethod
    def log_fade(self, process: Process, grid: Array) -> LogFade:
        """log f of this method."""

    @abc.abstractmethod
    def weights(self, process: Process, grid: Array) -> tuple[Array, Array]:
        """keep [n - 1] and mix [n - 1, k] of a grid [n], with zeros in mix where there is no history yet."""

    def plan(self, process: Process, grid: Array) -> Any:
        keep, mix = self.weights(process, grid)
        return StochasticWeights(grid[:-1], grid[1:], keep, mix, spread(process, grid, self.log_fade(process, grid)))

    def init(self, x: Array) -> Array:
        return jnp.zeros((self.memory - 1, *x.shape), x.dtype)

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Array, plan: Any, noise: Noise
    ) -> tuple[Array, Array]:
        x, prediction = evaluate(denoise, process, x, plan.t)
        values = jnp.concatenate([prediction.x0[None], carry])
        mean = plan.keep * self.corrected(x, values, plan) + jnp.tensordot(plan.mix, values, axes=1)
        return mean + plan.spread * noise.between(plan.t, plan.s), values[:-1]

    def corrected(self, x: Array, values: Array, plan: Any) -> Array:
        """The state that a step goes on from: x at its start, or what the values [k, ...] make of it."""
        return x


def constant(tau_squared: Array) -> LogFade:
    """log f for a tau^2 [] or [m] that is constant over each step."""
    rate = jnp.reshape(tau_squared, (-1, 1))
    return lambda at, end: jnp.where(rate == 0, 0, rate * (at - end))


def _whole(process: Process, grid: Array, log_fade: LogFade) -> tuple[Array, Array, Array]:
    """log f at the steps' starts, what they keep, and the sum of their weights, each [m]."""
    start, end = (half_log_snr(process, times)[:, None] for times in (grid[:-1], grid[1:]))
    fade = log_fade(start, end)[:, 0]
    keep = process.sigma(grid[1:]) / process.sigma(grid[:-1]) * jnp.exp(fade)
    return fade, keep, -process.alpha(grid[1:]) * jnp.expm1(fade + (start - end)[:, 0])


def spread(process: Process, grid: Array, log_fade: LogFade) -> Array:
    """The standard deviation [n - 1] of each step's noise."""
    # For tau = 0, a grid may increase.
    return process.sigma(grid[1:]) * jnp.sqrt(jnp.maximum(-jnp.expm1(2 * _whole(process, grid, log_fade)[0]), 0))


def anchored(process: Process, grid: Array, log_fade: LogFade, others: Array) -> tuple[Array, Array]:
    """keep [m] and weights [m, k] of which all but the first, [m, k - 1], are given: they add up to the whole."""
    _, keep, whole = _whole(process, grid, log_fade)
    return keep, jnp.concatenate([(whole - others.sum(axis=1))[:, None], others], axis=1)


def integrals(
    process: Process,
    grid: Array,
    log_fade: LogFade,
    nodes: Array,
    exists: Array,
    variable: Callable[[Array], Array] = lambda at: at,
) -> Array:
    """Weights [m, k - 1] of the values at all nodes [m, k] (in l) but the first, for the polynomials in variable(l)."""
    start, end = half_log_snr(process, grid[:-1]), half_log_snr(process, grid[1:])
    # From zero SNR and to the data a step takes the newest value alone, whose weight needs no quadrature.
    finite = jnp.isfinite(start) & jnp.isfinite(end)
    start, end = jnp.where(finite, start, 0), jnp.where(finite, end, 0)
    exists = exists & finite[:, None]
    nodes = jnp.where(exists, nodes, 0)

    def integrand(at: Array) -> Array:
        weight = slope(lambda node: jnp.exp(node - end[:, None] + log_fade(node, end[:, None])), at)
        return weight[:, None] * lagrange(variable(nodes), exists, variable(at))[:, 1:]

    inner = process.alpha(grid[1:])[:, None] * quadrature(start, end, integrand)
    return jnp.where(exists[:, 1:], inner, 0)


def stochastic_adams(
    process: Process, grid: Array, k: int, log_fade: LogFade, variable: Callable[[Array], Array] = lambda at: at
) -> tuple[Array, Array]:
    """keep [n - 1] and mix [n - 1, k] that integrate exactly the polynomial of x0 in variable(l) through k nodes."""
    nodes, exists = past(half_log_snr(process, grid), k)
    return anchored(process, grid, log_fade, integrals(process, grid, log_fade, nodes, exists, variable))
