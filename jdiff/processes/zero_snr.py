"""Zero terminal SNR: alpha of a variance-preserving process, shifted and scaled so that it ends at zero.

alpha(t) = (a(t) - a_T) a_1 / (a_1 - a_T), with a of the process, a_T = a(t_max), a_1 = a(t_min) (Lin et al. 2023,
arXiv:2305.08891, algorithm 1, whose first step is t_min). The first step is unchanged; so is what lies before it.
In terms of m = 1 - a = s^2 / (1 + a), with s of the process, which is small near the data:

    1 - alpha = m + a_T (m - m_1) / (a_1 - a_T)  for t > t_min,  sigma^2 = (1 - alpha)(1 + alpha).
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
class ZeroTerminalSNR(Process):
    """A variance-preserving process, or a chain, of which nothing is left at its end; its networks' labels are kept."""

    process: Process
    """What is rescaled."""

    def __post_init__(self):
        if not is_plain(self):
            return
        with jax.ensure_compile_time_eval():
            t_min, t_max = self.process.time_span
            times = jnp.linspace(t_min, t_max, 5)
            power = self.process.alpha(times) ** 2 + self.process.sigma(times) ** 2
        require(
            jnp.allclose(power, 1, atol=1e-5),
            f"ZeroTerminalSNR needs a variance-preserving process, got {self.process}, whose alpha^2 + sigma^2 is "
            f"{power} at {times}",
        )

    @property
    def time_span(self) -> tuple[float, float]:
        return self.process.time_span

    @property
    def steps(self) -> int | None:
        return self.process.steps

    def noise_label(self, t: Time) -> Array:
        return self.process.noise_label(t)

    def _loss(self, t: Time) -> Array:
        """1 - a(t), accurate near the data."""
        return self.process.sigma(t) ** 2 / (1 + self.process.alpha(t))

    def _ends(self, t: Array) -> tuple[Array, Array, Array]:
        """a_1, 1 - a_1 and a_T in the dtype of t."""
        first, last = (jnp.asarray(end, t.dtype) for end in self.time_span)
        return self.process.alpha(first), self._loss(first), self.process.alpha(last)

    def alpha(self, t: Time) -> Array:
        t = jnp.asarray(t)
        first, _, last = self._ends(t)
        above = self.process.alpha(t) - last
        # Rounding must leave neither a rest at t_max nor a negative alpha before it, and no trace in the slope.
        exact = jnp.where(t >= self.time_span[1], 0, jnp.maximum(above, 0))
        above = above + jax.lax.stop_gradient(exact - above)
        return jnp.where(t < self.time_span[0], self.process.alpha(t), above * (first / (first - last)))

    def _shortfall(self, t: Time) -> Array:
        """1 - alpha(t)."""
        t = jnp.asarray(t)
        first, first_loss, last = self._ends(t)
        loss = self._loss(t)
        return jnp.where(t < self.time_span[0], loss, loss + last * (loss - first_loss) / (first - last))

    def sigma(self, t: Time) -> Array:
        return jnp.sqrt(self._shortfall(t) * (1 + self.alpha(t)))

    def log_snr(self, t: Time) -> Array:
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time(self, log_snr: Time) -> Array:
        log_snr = jnp.asarray(log_snr)
        alpha = jnp.sqrt(jax.nn.sigmoid(log_snr))
        shortfall = jax.nn.sigmoid(-log_snr) / (1 + alpha)
        first, first_loss, last = self._ends(log_snr)
        changed = shortfall > first_loss
        loss = jnp.where(changed, (shortfall * (first - last) + last * first_loss) / first, shortfall)
        scale = jnp.where(changed, alpha * (first - last) / first + last, alpha)
        return self.process.time(2 * jnp.log(scale) - jnp.log(loss * (1 + scale)))
