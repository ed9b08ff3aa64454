"""Rectified flow: x_t = (1 - t) x0 + t eps, t in (0, 1], whose velocity dx/dt is eps - x0.

Liu et al. 2022 (arXiv:2209.03003) and Lipman et al. 2022 (arXiv:2210.02747), with time turned so that it grows with
noise, as in Stable Diffusion 3 (arXiv:2403.03206).
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
class RectifiedFlow(Process):
    """Straight lines from data to noise; nothing of the data is left at t = 1."""

    t_min: float = 1e-3
    """The least time that is trained and sampled."""

    def __post_init__(self):
        if not is_plain(self):
            return
        require((self.t_min > 0) & (self.t_min < 1), f"RectifiedFlow needs 0 < t_min < 1, got {self.t_min}")

    @property
    def time_span(self) -> tuple[float, float]:
        return self.t_min, 1.0

    def alpha(self, t: Time) -> Array:
        return 1 - jnp.asarray(t)

    def sigma(self, t: Time) -> Array:
        return jnp.asarray(t)

    def log_snr(self, t: Time) -> Array:
        return 2 * (jnp.log1p(-jnp.asarray(t)) - jnp.log(t))

    def time(self, log_snr: Time) -> Array:
        return jax.nn.sigmoid(-jnp.asarray(log_snr) / 2)
