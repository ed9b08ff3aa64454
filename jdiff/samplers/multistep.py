"""Linear multistep methods in exponential form: one evaluation a step, earlier ones kept.

With l = log(alpha / sigma), the half log-SNR, and rho = sigma / alpha = e^-l, the probability-flow ODE from t to s is
solved by either of

    x_s = (sigma_s / sigma_t) x_t + sigma_s int e^l x0 dl          (data prediction; arXiv:2211.01095, eq. 8)
    x_s = (alpha_s / alpha_t) x_t + alpha_s int eps drho           (noise prediction; arXiv:2206.00927, prop. 3.1)

A method replaces x0 or eps by a combination of its values at the start of the step (v_0) and before (v_1, v_2, ...).
One that is exact where they are all the same is, in either form, DDIM's step and something for the differences,

    x_s = alpha_s x0_t + sigma_s eps_t + sum_j mix_j (v_j - v_0),

which is finite from zero terminal SNR and to the data, where mix is zero. It differs from another method in the numbers
alone, which `weights` makes for all steps at once. The first steps have less history and are of lower order: what a
method documents is the order of all others, which is what is measured where the first ones do little, as they do in
noise.
"""

import abc
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jdiff.processes import Process
from jdiff.samplers.base import Noise, Solver, evaluate
from jdiff.typing import Array, Denoiser

Space = Literal["x0", "eps"]


class Weights(NamedTuple):
    """The plan of a multistep method, m steps over k values."""

    t: Array  # [m]: where the steps begin
    s: Array  # [m]: where they end
    mix: Array  # [m, k - 1]: factors of v_1 - v_0, v_2 - v_0, ...


class Multistep(Solver):
    """A solver that is its weights, with one evaluation a step."""

    space: ClassVar[Space]  # which prediction is kept
    memory: int  # k: the number of values that a step combines
    nfe_per_step = 1

    @abc.abstractmethod
    def weights(self, process: Process, grid: Array) -> Array:
        """mix [n - 1, k - 1] of a grid [n], with zeros where there is no history yet."""

    def plan(self, process: Process, grid: Array) -> Weights:
        return Weights(grid[:-1], grid[1:], self.weights(process, grid))

    def init(self, x: Array) -> Array:
        return jnp.zeros((self.memory - 1, *x.shape), x.dtype)

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Array, plan: Weights, noise: Noise
    ) -> tuple[Array, Array]:
        _, prediction = evaluate(denoise, process, x, plan.t)
        newest = getattr(prediction, self.space)
        change = jnp.tensordot(plan.mix, carry - newest, axes=1)
        kept = jnp.concatenate([newest[None], carry])[:-1]
        return process.perturb(prediction.x0, prediction.eps, plan.s) + change, kept


def past(nodes: Array, k: int) -> tuple[Array, Array]:
    """For each step from nodes[i] to nodes[i + 1], the nodes i, i - 1, ..., i - k + 1: [n - 1, k], and which exist.

    What does not exist, before the first node or where a node is infinite (zero terminal SNR), repeats nodes[i].
    """
    number = jnp.arange(nodes.shape[0] - 1)[:, None] - jnp.arange(k)
    values = nodes[jnp.maximum(number, 0)]
    exists = ((number >= 0) & jnp.isfinite(values)).at[:, 0].set(True)
    return jnp.where(exists, values, values[:, :1]), exists


def lagrange(nodes: Array, exists: Array, at: Array) -> Array:
    """Values [m, k, q] at the points `at` [m, q] of the Lagrange polynomials of the nodes [m, k] that exist."""
    factor = (at[:, None, None, :] - nodes[:, None, :, None]) / _apart(nodes)[..., None]
    other = exists[:, None, :] & ~jnp.eye(nodes.shape[1], dtype=bool)
    return jnp.where(exists[..., None], jnp.prod(jnp.where(other[..., None], factor, 1), axis=2), 0)


def _apart(nodes: Array) -> Array:
    """nodes_j - nodes_i [m, j, i], with one where that is zero."""
    difference = nodes[:, :, None] - nodes[:, None, :]
    return jnp.where(difference == 0, 1, difference)


def quadrature(start: Array, end: Array, integrand: Callable[[Array], Array], points: int = 16) -> Array:
    """The integral from start to end [m] by Gauss and Legendre; the integrand takes [m, q] and gives [m, ..., q]."""
    node, weight = np.polynomial.legendre.leggauss(points)
    half = (end - start) / 2
    value = integrand(((start + end) / 2)[:, None] + half[:, None] * jnp.asarray(node, start.dtype))
    return half.reshape(-1, *[1] * (value.ndim - 2)) * (value @ jnp.asarray(weight, start.dtype))


def phi(k: int, z: Array) -> Array:
    """phi_k(z) [m] = int_0^1 e^((1 - u) z) u^(k - 1) / (k - 1)! du, for k >= 1; (e^z - 1) / z for k = 1."""
    integrand = lambda u: jnp.exp((1 - u) * z[:, None]) * u ** (k - 1) / float(np.prod(np.arange(1, k)))
    return quadrature(jnp.zeros_like(z), jnp.ones_like(z), integrand)


def half_log_snr(process: Process, grid: Array) -> Array:
    """log(alpha / sigma) at the grid's times."""
    return process.log_snr(grid) / 2


def steps(process: Process, grid: Array) -> tuple[Array, Array]:
    """Lengths [n - 1] of the steps in l, and which are finite; a length that is not is given as zero."""
    half = half_log_snr(process, grid)
    finite = jnp.isfinite(half[1:]) & jnp.isfinite(half[:-1])
    return jnp.where(finite, half[1:], 0) - jnp.where(finite, half[:-1], 0), finite


def whole(process: Process, grid: Array, space: Space) -> Array:
    """The sum [n - 1] of the weights of all values of a step: what a constant is multiplied by; zero from zero SNR."""
    half = half_log_snr(process, grid)
    start = jnp.where(jnp.isfinite(half[:-1]), half[:-1], half[1:])
    share = -process.alpha(grid[1:]) * jnp.expm1(start - half[1:])
    return share if space == "x0" else -jnp.exp(-start) * share


def polynomial_weights(process: Process, grid: Array, space: Space, nodes: Array, exists: Array, variable) -> Array:
    """Weights [n - 1, k] of the values at the nodes [n - 1, k] in l that integrate exactly a polynomial in variable(l).

    Zero for a node that does not exist and for a step of infinite length.
    """
    h, finite = steps(process, grid)
    end = jnp.where(finite, half_log_snr(process, grid)[1:], 0)
    exists = exists & finite[:, None]
    nodes = variable(jnp.where(exists, nodes, end[:, None]))
    power = (lambda at: at - end[:, None]) if space == "x0" else (lambda at: end[:, None] - at)
    integral = quadrature(end - h, end, lambda at: jnp.exp(power(at))[:, None] * lagrange(nodes, exists, variable(at)))
    scale = process.alpha(grid[1:]) if space == "x0" else -process.sigma(grid[1:])
    return jnp.where(exists, scale[:, None] * integral, 0)


def exponential_adams(
    process: Process, grid: Array, k: int, space: Space = "x0", variable: Callable[[Array], Array] = lambda half: half
) -> Array:
    """mix [n - 1, k - 1] that integrates exactly the polynomial of the values in variable(l) through the last k."""
    nodes, exists = past(half_log_snr(process, grid), k)
    return polynomial_weights(process, grid, space, nodes, exists, variable)[:, 1:]
