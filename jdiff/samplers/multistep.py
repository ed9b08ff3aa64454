"""Linear multistep methods in exponential form: one evaluation a step, earlier ones kept.

With l = log(alpha / sigma), the half log-SNR, the probability-flow ODE from t to s is solved by either of

    x_s = (sigma_s / sigma_t) x_t + sigma_s int e^l x0 dl          (data prediction; arXiv:2211.01095, eq. 8)
    x_s = (alpha_s / alpha_t) x_t - alpha_s int e^-l eps dl        (noise prediction; arXiv:2206.00927, prop. 3.1)

A method replaces x0 or eps by a combination of its values at the step's start and before, so that a step is
x_s = keep x_t + sum_j mix_j value_j. It differs from another in the numbers alone, which `weights` makes for all steps
at once.
"""

import abc
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jdiff.processes import Process
from jdiff.samplers.base import Noise, Solver, evaluate
from jdiff.typing import Array, Denoiser


class Weights(NamedTuple):
    """The plan of a multistep method, m steps over k values."""

    t: Array  # [m]: where the steps begin
    keep: Array  # [m]: factors of x_t
    mix: Array  # [m, k]: factors of the values, the newest first


class Multistep(Solver):
    """A solver that is its weights; `mix` has zeros where there is no history yet."""

    space: ClassVar[Literal["x0", "eps"]]  # which prediction is kept
    memory: int  # k: the number of values that a step combines
    nfe_per_step = 1

    @abc.abstractmethod
    def weights(self, process: Process, grid: Array) -> tuple[Array, Array]:
        """keep [n - 1] and mix [n - 1, k] of a grid [n]."""

    def plan(self, process: Process, grid: Array) -> Weights:
        return Weights(grid[:-1], *self.weights(process, grid))

    def init(self, x: Array) -> Array:
        return jnp.zeros((self.memory - 1, *x.shape), x.dtype)

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Array, plan: Weights, noise: Noise
    ) -> tuple[Array, Array]:
        x, prediction = evaluate(denoise, process, x, plan.t)
        values = jnp.concatenate([getattr(prediction, self.space)[None], carry])
        return plan.keep * x + jnp.tensordot(plan.mix, values, axes=1), values[:-1]


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


def quadrature(start: Array, end: Array, integrand: Callable[[Array], Array], points: int = 12) -> Array:
    """The integral from start to end [m] by Gauss and Legendre; the integrand takes [m, q] and gives [m, ..., q]."""
    node, weight = np.polynomial.legendre.leggauss(points)
    half = (end - start) / 2
    value = integrand(((start + end) / 2)[:, None] + half[:, None] * jnp.asarray(node, start.dtype))
    return half.reshape(-1, *[1] * (value.ndim - 2)) * (value @ jnp.asarray(weight, start.dtype))


def half_log_snr(process: Process, grid: Array) -> Array:
    """log(alpha / sigma) at the grid's times."""
    return process.log_snr(grid) / 2


def exponential_adams(process: Process, grid: Array, k: int) -> tuple[Array, Array]:
    """keep [n - 1] and mix [n - 1, k] that integrate exactly the polynomial of x0 in l through the last k nodes."""
    nodes, exists = past(half_log_snr(process, grid), k)
    start, end = nodes[:, 0], half_log_snr(process, grid)[1:]
    # From zero SNR there is one node, whose weight needs no quadrature.
    integral = quadrature(
        jnp.where(jnp.isfinite(start), start, end),
        end,
        lambda at: jnp.exp(at - end[:, None])[:, None] * lagrange(nodes, exists, at)[:, 1:],
    )
    alpha = process.alpha(grid[1:])
    mix = alpha[:, None] * jnp.where(exists[:, 1:], integral, 0)
    newest = -alpha * jnp.expm1(start - end) - mix.sum(axis=1)
    return process.sigma(grid[1:]) / process.sigma(grid[:-1]), jnp.concatenate([newest[:, None], mix], axis=1)
