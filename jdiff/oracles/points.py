"""Finitely many points, such as points on a manifold, each with the same isotropic noise.

x0 = c + std z with c uniform over the points [N, D]; c given x_t is a softmax of -|x - alpha c|^2 / 2 S (`base.py`).
Distances are sums of squared differences: their expansion into products loses them where noise is small.
"""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from jdiff.oracles.base import Distribution, predict_around, variance_around
from jdiff.prediction import Prediction
from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.pytree import pytree
from jdiff.typing import Array, Key, Time


@final
@pytree
@dataclasses.dataclass(frozen=True)
class Points(Distribution):
    """Equally likely points [N, D] with isotropic noise of standard deviation std [], made by `points`.

    A std of zero is a data set by itself, whose exact denoiser is the optimum of training on it. Memory of one
    evaluation is of the order B N, not B N D.
    """

    centres: Array
    std: Array

    def _exponent(self, process: Process, x: Array, t: Time) -> Array:
        alpha = jnp.broadcast_to(process.alpha(t), x.shape[:1])[:, None, None]
        squares = jnp.sum((x[:, None] - alpha * self.centres) ** 2, axis=-1)
        return -0.5 * squares / variance_around(process, self.std, x, t)

    def log_density(self, process: Process, x: Array, t: Time) -> Array:
        n, d = self.centres.shape
        norm = 0.5 * d * jnp.log(2 * jnp.pi * variance_around(process, self.std, x, t))
        return jax.nn.logsumexp(self._exponent(process, x, t) - norm, axis=-1) - jnp.log(jnp.asarray(n, x.dtype))

    def predict(self, process: Process, x: Array, t: Time) -> Prediction:
        centre = jax.nn.softmax(self._exponent(process, x, t), axis=-1) @ self.centres
        return predict_around(process, self.std, centre, x, t)

    def sample(self, key: Key, n: int) -> Array:
        member_key, normal_key = jax.random.split(key)
        centre = self.centres[jax.random.randint(member_key, (n,), 0, self.centres.shape[0])]
        return centre + self.std * jax.random.normal(normal_key, centre.shape, centre.dtype)

    def moments(self) -> tuple[Array, Array]:
        mean = self.centres.mean(axis=0)
        centred = self.centres - mean
        noise = self.std**2 * jnp.eye(centred.shape[1], dtype=centred.dtype)
        return mean, centred.T @ centred / centred.shape[0] + noise


def points(centres: Array, std: float | Array) -> Points:
    """Points [N, D] with noise of standard deviation std >= 0. Raises ValueError otherwise."""
    centres = jnp.asarray(centres)
    if centres.ndim != 2 or not centres.shape[0]:
        raise ValueError(f"centres must have shape [N, D] with N >= 1, got {centres.shape}")
    require(jnp.asarray(std) >= 0, f"std must not be negative, got {std}")
    return Points(centres, jnp.asarray(std, centres.dtype))


def swiss_roll(n: int = 1000, std: float = 0.02, dtype=jnp.float32) -> Points:
    """n points on a spiral in the plane, from radius 1/3 to 1 over one and a half turns.

    Equal steps in the squared angle are nearly equal steps along the spiral.
    """
    ends = (jnp.pi * jnp.asarray([1.5, 4.5], dtype)) ** 2
    angle = jnp.sqrt(jnp.linspace(ends[0], ends[1], n, dtype=dtype))
    radius = angle / (4.5 * jnp.pi)
    return points(jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=-1), std)
