"""Linear beta: dx = -beta(t)/2 x dt + g(t) dW, t in (0, 1], beta(t) = beta_min + t (beta_max - beta_min).

log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2 (Song et al. 2021, arXiv:2011.13456, eq. 29-33), and

- VP: g^2 = beta, alpha^2 + sigma^2 = 1;
- sub-VP: g^2 = beta (1 - alpha^4), sigma = 1 - alpha^2, so that sigma / alpha = 2 sinh(-log alpha).
"""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from jdiff.processes.base import Process, is_plain, require
from jdiff.pytree import pytree
from jdiff.typing import Array, Time


class _LinearBeta(Process):
    beta_min: float
    beta_max: float
    t_min: float

    def __post_init__(self):
        if not is_plain(self):
            return
        name = type(self).__name__
        require(self.beta_min > 0, f"{name} needs beta_min > 0, got {self.beta_min}")
        require(
            self.beta_max >= self.beta_min, f"{name} needs beta_max >= beta_min, got {self.beta_max} < {self.beta_min}"
        )
        require((self.t_min > 0) & (self.t_min < 1), f"{name} needs 0 < t_min < 1, got {self.t_min}")

    @property
    def time_span(self) -> tuple[float, float]:
        return self.t_min, 1.0

    def _log_alpha(self, t: Time) -> Array:
        t = jnp.asarray(t)
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def _time(self, integral: Array) -> Array:
        """Where the integral of beta from 0, which is -2 log alpha, has this value."""
        span = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * span * integral))

    def alpha(self, t: Time) -> Array:
        return jnp.exp(self._log_alpha(t))


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class VP(_LinearBeta):
    """Variance-preserving SDE with linear beta."""

    beta_min: float = 0.1
    """beta(0)."""
    beta_max: float = 20.0
    """beta(1)."""
    t_min: float = 1e-3
    """The least time that is trained and sampled."""

    def sigma(self, t: Time) -> Array:
        return jnp.sqrt(-jnp.expm1(2 * self._log_alpha(t)))

    def log_snr(self, t: Time) -> Array:
        log_alpha = self._log_alpha(t)
        return 2 * log_alpha - jnp.log(-jnp.expm1(2 * log_alpha))

    def time(self, log_snr: Time) -> Array:
        return self._time(jax.nn.softplus(-jnp.asarray(log_snr)))


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVP(_LinearBeta):
    """Sub-VP SDE with linear beta: the drift of VP and less noise at every time."""

    beta_min: float = 0.1
    """beta(0)."""
    beta_max: float = 20.0
    """beta(1)."""
    t_min: float = 1e-3
    """The least time that is trained and sampled."""

    def sigma(self, t: Time) -> Array:
        return -jnp.expm1(2 * self._log_alpha(t))

    def log_snr(self, t: Time) -> Array:
        return 2 * (self._log_alpha(t) - jnp.log(self.sigma(t)))

    def time(self, log_snr: Time) -> Array:
        return self._time(2 * jnp.arcsinh(jnp.exp(-jnp.asarray(log_snr) / 2) / 2))
