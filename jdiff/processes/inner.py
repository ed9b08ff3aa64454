"""Variance-preserving processes whose log-SNR is known from t_min to 1, where it is finite at both ends.

Below t_min, sigma / alpha falls in proportion to t, so that t = 0 is the data, as in every process.
"""

import abc

import jax.numpy as jnp

from jdiff.processes.base import Process
from jdiff.typing import Array, Time


class InnerLogSNR(Process):
    """alpha^2 + sigma^2 = 1, from `inner_log_snr` and its inverse."""

    @abc.abstractmethod
    def inner_log_snr(self, t: Array) -> Array:
        """log-SNR for t >= t_min."""

    @abc.abstractmethod
    def inner_time(self, log_snr: Array) -> Array:
        """Inverse of `inner_log_snr`, for log-SNR no greater than that of t_min."""

    def _level(self, t: Time) -> Array:
        """sigma / alpha."""
        t = jnp.asarray(t)
        t_min = jnp.asarray(self.time_span[0], t.dtype)
        level = jnp.exp(-self.inner_log_snr(jnp.where(t < t_min, t_min, t)) / 2)
        return jnp.where(t < t_min, level * (t / t_min), level)

    def alpha(self, t: Time) -> Array:
        return 1 / jnp.sqrt(1 + self._level(t) ** 2)

    def sigma(self, t: Time) -> Array:
        level = self._level(t)
        return level / jnp.sqrt(1 + level**2)

    def log_snr(self, t: Time) -> Array:
        return -2 * jnp.log(self._level(t))

    def time(self, log_snr: Time) -> Array:
        log_snr = jnp.asarray(log_snr)
        t_min = jnp.asarray(self.time_span[0], log_snr.dtype)
        greatest = self.inner_log_snr(t_min)
        inside = self.inner_time(jnp.where(log_snr > greatest, greatest, log_snr))
        return jnp.where(log_snr > greatest, t_min * jnp.exp((greatest - log_snr) / 2), inside)
