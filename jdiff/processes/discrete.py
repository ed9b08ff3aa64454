"""The T-step chain of DDPM as a process: timestep i = 0, ..., T - 1 is the time t = (i + 1) / T.

q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i), so that alpha_i^2 = prod_{j <= i} (1 - beta_j), which code calls
"alphas_cumprod", and alpha^2 + sigma^2 = 1 (Ho et al. 2020, arXiv:2006.11239). Between its steps, the log-SNR is linear
in t, so that a network trained on whole timesteps is told a fraction of one at noise levels in between.

`betas` goes the other way: any process, seen at the times of a grid, is a chain.
"""

import dataclasses
from typing import final

import jax.numpy as jnp
import numpy as np

from jdiff.processes.base import Process, require
from jdiff.processes.inner import InnerLogSNR
from jdiff.pytree import pytree
from jdiff.typing import Array, Time


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """beta linear from start to end, [steps] float64 (arXiv:2006.11239, section 4)."""
    return np.linspace(start, end, steps)


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> np.ndarray:
    """sqrt(beta) linear, [steps] float64: the chain of Stable Diffusion (arXiv:2112.10752)."""
    return np.linspace(start**0.5, end**0.5, steps) ** 2


def cosine_betas(steps: int = 1000, offset: float = 0.008, greatest: float = 0.999) -> np.ndarray:
    """alpha a cosine, [steps] float64; beta is clipped at `greatest` (arXiv:2102.09672, eq. 17)."""
    angle = (np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2
    return np.minimum(1 - (np.cos(angle[1:]) / np.cos(angle[:-1])) ** 2, greatest)


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Chain(InnerLogSNR):
    """The chain in continuous time, t in (0, 1], exact at its own times. Made by `from_betas`, `from_alphas_cumprod`.

    The prior has the variance of the last step's noise. Many chains keep something of the data there (alpha_T is 0.07
    in Stable Diffusion), which the prior leaves out; `ZeroTerminalSNR` takes it away.
    """

    log_snrs: Array | np.ndarray = dataclasses.field(repr=False)
    """log(alpha_i^2 / sigma_i^2) of the steps, decreasing, [T]."""

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> "Chain":
        """The chain with these variances [T], T >= 2, each in (0, 1)."""
        betas = np.asarray(betas, np.float64)
        require(betas.ndim == 1 and len(betas) > 1, f"betas must have shape [T] with T >= 2, got {betas.shape}")
        outside = ~((betas > 0) & (betas < 1))
        require(
            not outside.any(),
            f"betas must lie between 0 and 1, got {betas[outside]} at {np.flatnonzero(outside)}; for a last one of 1, "
            "use ZeroTerminalSNR",
        )
        log_alphas_cumprod = np.cumsum(np.log1p(-betas))
        return cls(log_snrs=log_alphas_cumprod - np.log(-np.expm1(log_alphas_cumprod)))

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: np.ndarray) -> "Chain":
        """The chain with these alpha^2 [T], T >= 2, decreasing, each in (0, 1)."""
        kept = np.asarray(alphas_cumprod, np.float64)
        require(kept.ndim == 1 and len(kept) > 1, f"alphas_cumprod must have shape [T] with T >= 2, got {kept.shape}")
        require(
            bool(kept[0] < 1 and kept[-1] > 0 and (np.diff(kept) < 0).all()),
            f"alphas_cumprod must decrease from each step to the next, between 1 and 0, got {kept}; for a last one of "
            "0, use ZeroTerminalSNR",
        )
        return cls(log_snrs=np.log(kept) - np.log1p(-kept))

    @property
    def steps(self) -> int:
        return self.log_snrs.shape[0]

    @property
    def time_span(self) -> tuple[float, float]:
        return 1 / self.steps, 1.0

    def times(self, dtype=jnp.float32) -> Array:
        """All T times, decreasing from 1 to 1/T: the grid of the whole chain."""
        return jnp.asarray(np.arange(self.steps, 0, -1) / self.steps, dtype)

    def timestep(self, t: Time) -> Array:
        """The number that a network trained on the chain is told: i at its own times, a fraction between them."""
        t = jnp.asarray(t)
        step = t * self.steps - 1
        whole = jnp.round(step)
        return jnp.where(jnp.abs(step - whole) <= 2 * self.steps * jnp.finfo(t.dtype).eps, whole, step)

    def noise_label(self, t: Time) -> Array:
        return self.timestep(t)

    def _knots(self, dtype) -> tuple[Array, Array]:
        """Times and log-SNR of the steps, [T]."""
        return jnp.asarray(np.arange(1, self.steps + 1) / self.steps, dtype), jnp.asarray(self.log_snrs, dtype)

    def inner_log_snr(self, t: Array) -> Array:
        times, log_snrs = self._knots(t.dtype)
        return jnp.interp(t, times, log_snrs, right="extrapolate")

    def inner_time(self, log_snr: Array) -> Array:
        times, log_snrs = self._knots(log_snr.dtype)
        return jnp.interp(-log_snr, -log_snrs, times, right="extrapolate")


def betas(process: Process, times: Array) -> Array:
    """beta of the chain that a variance-preserving process is at `times` [n], decreasing; in their order.

    beta_i = 1 - alpha_i^2 / alpha_{i-1}^2, where step i - 1 is the next of the times, and the data after the last.
    """
    before = jnp.append(times[1:], jnp.zeros(1, times.dtype))
    return process.transition(jnp.ones_like(times), before, times)[1]
