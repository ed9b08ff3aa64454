"""Gaussian mixtures with any covariances.

For x0 ~ sum_k w_k N(m_k, C_k), x_t ~ sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I). Given component k,
E[x0 | x_t] = m_k + alpha C_k S_k^-1 (x - alpha m_k) and E[eps | x_t] = sigma S_k^-1 (x - alpha m_k), with
S_k = alpha^2 C_k + sigma^2 I; the mixture weighs them by the components' posterior probabilities at x.
Covariances are kept as eigenvectors and eigenvalues, so nothing is inverted.
"""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from jdiff.oracles.base import Distribution
from jdiff.prediction import Prediction
from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.pytree import pytree
from jdiff.typing import Array, Key, Time


@final
@pytree
@dataclasses.dataclass(frozen=True)
class Mixture(Distribution):
    """A Gaussian mixture in D dimensions, made by `mixture` or `gaussian`: log weights [K], means [K, D], and the
    covariances' eigenvectors [K, D, D] and eigenvalues [K, D]."""

    log_weights: Array
    means: Array
    vectors: Array
    values: Array

    def _whitened(self, process: Process, x: Array, t: Time) -> tuple[Array, Array]:
        """(x - alpha m_k) in each component's axes, and S_k's eigenvalues: [B, K, D] each."""
        alpha = jnp.broadcast_to(process.alpha(t), x.shape[:1])[:, None, None]
        sigma = jnp.broadcast_to(process.sigma(t), x.shape[:1])[:, None, None]
        offset = jnp.einsum("kde,bkd->bke", self.vectors, x[:, None] - alpha * self.means)
        return offset, alpha**2 * self.values + sigma**2

    def log_joint(self, process: Process, x: Array, t: Time) -> Array:
        """log w_k + log N(x; alpha m_k, S_k) of each component, [B, K]."""
        offset, variance = self._whitened(process, x, t)
        return self.log_weights - 0.5 * jnp.sum(offset**2 / variance + jnp.log(2 * jnp.pi * variance), axis=-1)

    def log_density(self, process: Process, x: Array, t: Time) -> Array:
        return jax.nn.logsumexp(self.log_joint(process, x, t), axis=-1)

    def predict_among(self, process: Process, x: Array, t: Time, log_joint: Array) -> Prediction:
        """The prediction with components weighed by the softmax of `log_joint` [B, K]."""
        alpha = jnp.broadcast_to(process.alpha(t), x.shape[:1])[:, None, None]
        sigma = jnp.broadcast_to(process.sigma(t), x.shape[:1])[:, None]
        offset, variance = self._whitened(process, x, t)
        member = jax.nn.softmax(log_joint, axis=-1)
        rotate = lambda z: jnp.einsum("kde,bke->bkd", self.vectors, z)
        x0 = self.means + rotate(alpha * self.values * offset / variance)
        eps = jnp.einsum("bk,bkd->bd", member, rotate(offset / variance))
        return Prediction(jnp.einsum("bk,bkd->bd", member, x0), sigma * eps)

    def predict(self, process: Process, x: Array, t: Time) -> Prediction:
        return self.predict_among(process, x, t, self.log_joint(process, x, t))

    def sample(self, key: Key, n: int) -> Array:
        member_key, normal_key = jax.random.split(key)
        member = jax.random.categorical(member_key, self.log_weights, shape=(n,))
        z = jax.random.normal(normal_key, (n, self.means.shape[1]), self.means.dtype) * jnp.sqrt(self.values[member])
        return self.means[member] + jnp.einsum("nde,ne->nd", self.vectors[member], z)

    def covariances(self) -> Array:
        """C_k, [K, D, D]."""
        return jnp.einsum("kde,ke,kfe->kdf", self.vectors, self.values, self.vectors)

    def moments(self) -> tuple[Array, Array]:
        weights = jnp.exp(self.log_weights)
        mean = weights @ self.means
        centred = self.means - mean
        inside = jnp.einsum("k,kdf->df", weights, self.covariances())
        return mean, inside + jnp.einsum("k,kd,ke->de", weights, centred, centred)


def mixture(weights: Array, means: Array, covariances: Array) -> Mixture:
    """A mixture from weights [K] (made to sum to one), means [K, D] and covariances [K, D, D].

    Raises ValueError if the shapes disagree, or a covariance has a negative variance along some axis.
    """
    weights, means, covariances = jnp.asarray(weights), jnp.asarray(means), jnp.asarray(covariances)
    k, d = means.shape
    if weights.shape != (k,) or covariances.shape != (k, d, d):
        raise ValueError(
            f"for means of shape {(k, d)}, weights must have shape {(k,)} and covariances {(k, d, d)}, "
            f"got {weights.shape} and {covariances.shape}"
        )
    values, vectors = jnp.linalg.eigh(covariances)
    rounding = 8 * jnp.finfo(values.dtype).eps * jnp.abs(values).max()
    require((values >= -rounding).all(), f"covariances must not have negative eigenvalues, got {values.min()}")
    return Mixture(jnp.log(weights / weights.sum()), means, vectors, jnp.maximum(values, 0))


def gaussian(mean: Array, covariance: Array) -> Mixture:
    """One Gaussian, mean [D] and covariance [D, D]: a mixture of one component."""
    mean, covariance = jnp.asarray(mean), jnp.asarray(covariance)
    return mixture(jnp.ones(1, mean.dtype), mean[None], covariance[None])


def ring(modes: int = 8, radius: float = 1.0, std: float = 0.1, dtype=jnp.float32) -> Mixture:
    """Equal isotropic modes on a circle in the plane."""
    angle = 2 * jnp.pi * jnp.arange(modes, dtype=dtype) / modes
    means = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return mixture(jnp.ones(modes, dtype), means, jnp.tile(std**2 * jnp.eye(2, dtype=dtype), (modes, 1, 1)))


def gaussian_flow(target: Mixture, process: Process, x: Array, t: Time, s: Time) -> Array:
    """Where the probability-flow ODE takes x [B, D] from t to s (scalars), for a target of one component.

    In the covariance's axes, (x_s - alpha_s m) / sd_s = (x_t - alpha_t m) / sd_t. Raises ValueError for more
    components.
    """
    if target.means.shape[0] != 1:
        raise ValueError(f"the flow is known for one component, got {target.means.shape[0]}")
    sd = lambda time: jnp.sqrt(process.alpha(time) ** 2 * target.values[0] + process.sigma(time) ** 2)
    offset = (x - process.alpha(t) * target.means[0]) @ target.vectors[0]
    return process.alpha(s) * target.means[0] + (offset * sd(s) / sd(t)) @ target.vectors[0].T
