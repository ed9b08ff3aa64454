"""A schedule with its log-SNR shifted: log_snr(t) = base.log_snr(t) + shift, by another running of the base's time.

alpha(t) = base.alpha(u) and sigma(t) = base.sigma(u), where base.log_snr(u) = base.log_snr(t) + shift.

- Simple diffusion (Hoogeboom et al. 2023, arXiv:2301.11093, section 2.1): shift = 2 log(base resolution / resolution).
- Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206, eq. 23): u = s t / (1 + (s - 1) t) on the rectified flow,
  which is shift = -2 log s. Flux takes s = exp(mu), mu linear in the number of image tokens.
"""

import dataclasses
import math
from typing import final

import jax
import jax.numpy as jnp

from jdiff.processes.base import Process, is_plain, require
from jdiff.processes.flow import RectifiedFlow
from jdiff.pytree import pytree
from jdiff.typing import Array, Time


def _angle(process: Process, t: Time, log_snr_shift: Time = 0.0) -> Array:
    """arctan(sigma / alpha) after a shift: smooth from the data, 0, to where nothing is left of it, pi / 2."""
    return jnp.arctan2(process.sigma(t) * jnp.exp(-jnp.asarray(log_snr_shift) / 2), process.alpha(t))


@jax.custom_jvp
def _move(process: Process, t: Array, log_snr_shift: Array) -> Array:
    """The process's time at which its log-SNR is that at t plus a shift."""
    return process.time(process.log_snr(t) + log_snr_shift)


@_move.defjvp
def _(primals, tangents):
    """The slope of an implicit function, of the angle: that of the log-SNR is infinite where the SNR is zero."""
    process, t, log_snr_shift = primals
    moved = _move(process, t, log_snr_shift)
    # At fixed u, how the angle at u falls short of what it should be as the arguments move.
    gap = lambda process, t, shift: _angle(process, t, shift) - _angle(process, moved, jnp.zeros_like(shift))
    _, rise = jax.jvp(gap, primals, tangents)
    _, slope = jax.jvp(lambda u: _angle(process, u), (moved,), (jnp.ones_like(moved),))
    return moved, rise / slope


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted(Process):
    """Another process, run through at other times: the same path from data to noise, with more or less of it noisy.

    Its ends move with the rest: a shift below zero ends with less of the data than the process has at its t_max, and
    one above zero with more. A process that ends without any does so still. Networks are told the process's own time.
    """

    process: Process
    """What is run through."""
    log_snr_shift: float
    """Added to the log-SNR at every time: below zero, there is more noise."""

    def __post_init__(self):
        if not is_plain(self):
            return
        require(math.isfinite(self.log_snr_shift), f"Shifted needs a finite log_snr_shift, got {self.log_snr_shift}")

    @property
    def time_span(self) -> tuple[float, float]:
        return self.process.time_span

    def inner_time(self, t: Time) -> Array:
        """The time of `process` that t stands for."""
        t = jnp.asarray(t)
        return _move(self.process, t, jnp.asarray(self.log_snr_shift, t.dtype))

    def noise_label(self, t: Time) -> Array:
        return self.process.noise_label(self.inner_time(t))

    def _scales(self, t: Time) -> tuple[Array, Array]:
        """alpha and sigma, the lesser from the other and their exact ratio: near its ends, u is rounded to nothing."""
        u, size = self.inner_time(t), jnp.exp(jnp.asarray(self.log_snr_shift, jnp.asarray(t).dtype) / 2)
        alpha, sigma = self.process.alpha(t) * size, self.process.sigma(t)
        noisy = alpha < sigma
        from_sigma = alpha * (self.process.sigma(u) / jnp.where(noisy, sigma, 1))
        from_alpha = sigma * (self.process.alpha(u) / jnp.where(noisy, 1, alpha))
        return jnp.where(noisy, from_sigma, self.process.alpha(u)), jnp.where(noisy, self.process.sigma(u), from_alpha)

    def alpha(self, t: Time) -> Array:
        return self._scales(t)[0]

    def sigma(self, t: Time) -> Array:
        return self._scales(t)[1]

    def log_snr(self, t: Time) -> Array:
        return self.process.log_snr(t) + self.log_snr_shift

    def time(self, log_snr: Time) -> Array:
        return self.process.time(jnp.asarray(log_snr) - self.log_snr_shift)


def resolution_shift(process: Process, resolution: int, base_resolution: int) -> Shifted:
    """A process for images of `resolution`, as noisy in their coarse parts as it is at `base_resolution` (pixels)."""
    require(
        resolution > 0 and base_resolution > 0,
        f"resolution and base_resolution must be above 0, got {resolution} and {base_resolution}",
    )
    return Shifted(process=process, log_snr_shift=2 * math.log(base_resolution / resolution))


def flow_shift(shift: float, t_min: float = 1e-3) -> Shifted:
    """The rectified flow at times s t / (1 + (s - 1) t), s = `shift`: 3 in Stable Diffusion 3 (arXiv:2403.03206)."""
    require(shift > 0, f"flow_shift needs shift > 0, got {shift}")
    return Shifted(process=RectifiedFlow(t_min=t_min), log_snr_shift=-2 * math.log(shift))


def token_shift(tokens: int) -> float:
    """Flux's `shift` for an image of so many tokens: exp(mu), mu linear from 0.5 at 256 tokens to 1.15 at 4096."""
    require(tokens > 0, f"token_shift needs tokens > 0, got {tokens}")
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
