"""The cosine schedule: alpha = cos(theta) / cos(theta_0), theta = (t + s)/(1 + s) pi/2, t in (0, 1].

Nichol and Dhariwal 2021 (arXiv:2102.09672, eq. 17), who add the offset s so that the first steps of a chain of 1000
are not too small; their clipping of beta at 0.999 is the chain's (`discrete.cosine_betas`). With
theta_0 = theta(0) and d = theta - theta_0,

    alpha = sin((1 - t) c) / cos(theta_0),  sigma^2 = sin(d) sin(d + 2 theta_0) / cos(theta_0)^2,  d = c t,

c = pi/2 / (1 + s), whose factors are accurate at both ends. The inverse comes from tan(theta)^2 = tan(theta_0)^2 +
(sigma / alpha)^2 / cos(theta_0)^2 and the tangent of a difference, without the difference.
"""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from jdiff.processes.base import Process, is_plain, require
from jdiff.pytree import pytree
from jdiff.typing import Array, Time


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Process):
    """Variance-preserving process with a cosine for alpha, which reaches zero at t = 1."""

    offset: float = 0.008
    """s, which keeps beta(0) above zero."""
    t_min: float = 1e-3
    """The least time that is trained and sampled."""
    t_max: float = 0.999
    """The greatest one. At 1, nothing of the data is left: only what does not divide by alpha is possible there."""

    def __post_init__(self):
        if not is_plain(self):
            return
        require(self.offset > 0, f"Cosine needs offset > 0, got {self.offset}")
        require((self.t_min > 0) & (self.t_min < 1), f"Cosine needs 0 < t_min < 1, got {self.t_min}")
        require(
            (self.t_max > self.t_min) & (self.t_max <= 1), f"Cosine needs t_min < t_max <= 1, got t_max {self.t_max}"
        )

    @property
    def time_span(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    @property
    def _rate(self) -> float:
        """d theta / dt."""
        return jnp.pi / 2 / (1 + self.offset)

    @property
    def _start(self) -> float:
        """theta_0."""
        return self.offset * self._rate

    def alpha(self, t: Time) -> Array:
        return jnp.sin((1 - jnp.asarray(t)) * self._rate) / jnp.cos(self._start)

    def sigma(self, t: Time) -> Array:
        angle = jnp.asarray(t) * self._rate
        return jnp.sqrt(jnp.sin(angle) * jnp.sin(angle + 2 * self._start)) / jnp.cos(self._start)

    def log_snr(self, t: Time) -> Array:
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time(self, log_snr: Time) -> Array:
        log_snr = jnp.asarray(log_snr)
        signal, noise = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)  # alpha^2 and sigma^2
        start = jnp.tan(self._start)
        alpha, sine = jnp.sqrt(signal), jnp.sqrt(start**2 + noise)  # proportional to cos(theta) and sin(theta)
        rise = jnp.arctan2(noise * (1 + start**2), (sine + start * alpha) * (alpha + start * sine))
        return rise / self._rate
