"""The uniform ring: x0 = R u + std z in the plane, with u uniform on the unit circle and z ~ N(0, I).

With a = alpha R, r = |x|, S of `base.py` and k = r a / S, the angle of u given x_t is von Mises about that of x:

    log p_t(x) = -log(2 pi S) - (r^2 + a^2) / 2 S + log I0(k),    E[u | x_t] = I1(k) / I0(k) x / r,

I0 and I1 being modified Bessel functions. They are taken scaled by exp(-k), which leaves -(r - a)^2 / 2 S.
"""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
from jax.scipy.special import i0e, i1e

from jdiff.oracles.base import Distribution, predict_around, variance_around
from jdiff.prediction import Prediction
from jdiff.processes import Process, match
from jdiff.processes.base import is_plain, require
from jdiff.pytree import pytree
from jdiff.typing import Array, Key, Time


def _mean_resultant(k: Array) -> Array:
    """I1(k) / I0(k) for k >= 0. Above 200 by its expansion in 1 / k, whose derivative loses no digits either."""
    inverse = 1 / jnp.maximum(k, 200)
    large = 1 - inverse * (1 / 2 + inverse * (1 / 8 + inverse * (1 / 8 + inverse * (25 / 128 + inverse * 13 / 32))))
    small = jnp.minimum(k, 200)
    return jnp.where(k > 200, large, i1e(small) / i0e(small))


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformRing(Distribution):
    """Uniform on a circle about the origin of the plane, with isotropic noise."""

    radius: float | Array = 1.0
    """Radius of the circle."""
    std: float | Array = 0.0
    """Standard deviation of the noise about it; zero for the circle itself, which has no density at t = 0."""

    def __post_init__(self):
        if not is_plain(self):
            return
        require(self.radius > 0, f"UniformRing needs radius > 0, got {self.radius}")
        require(self.std >= 0, f"UniformRing needs std >= 0, got {self.std}")

    def _polar(self, process: Process, x: Array, t: Time) -> tuple[Array, Array, Array]:
        """r, a and S, each [B, 1] or broadcasting against it. At the origin, where r has no slope, r is tiny."""
        square = jnp.sum(x**2, axis=-1, keepdims=True)
        tiny = jnp.finfo(x.dtype).tiny
        r = jnp.sqrt(jnp.where(square > tiny, square, tiny))
        return r, match(process.alpha(t), x) * self.radius, variance_around(process, self.std, x, t)

    def log_density(self, process: Process, x: Array, t: Time) -> Array:
        r, a, variance = self._polar(process, x, t)
        bessel = jnp.log(i0e(r * a / variance))
        return (bessel - jnp.log(2 * jnp.pi * variance) - (r - a) ** 2 / (2 * variance))[:, 0]

    def predict(self, process: Process, x: Array, t: Time) -> Prediction:
        r, a, variance = self._polar(process, x, t)
        centre = self.radius * _mean_resultant(r * a / variance) * (x / r)
        return predict_around(process, self.std, centre, x, t)

    def sample(self, key: Key, n: int) -> Array:
        angle_key, normal_key = jax.random.split(key)
        angle = jax.random.uniform(angle_key, (n,), maxval=2 * jnp.pi)
        circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return self.radius * circle + self.std * jax.random.normal(normal_key, (n, 2))

    def moments(self) -> tuple[Array, Array]:
        return jnp.zeros(2), (self.radius**2 / 2 + self.std**2) * jnp.eye(2)
