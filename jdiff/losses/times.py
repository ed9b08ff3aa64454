"""Where in time an example is trained: a distribution over the process's span, as its quantile function u -> t.

With u uniform in [0, 1), t = quantile(u) has the distribution, whatever the source of u: independent draws, the points
of a low-discrepancy sequence, or an importance sampler's (`history.py`).
"""

import abc
import dataclasses
from typing import final

import jax
import jax.numpy as jnp
from jax.scipy.special import erfinv

from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.typing import Array, Key


class TimeSampling(abc.ABC):
    """A distribution of times."""

    @abc.abstractmethod
    def quantile(self, u: Array, process: Process) -> Array:
        """Times inside the process's span for u in [0, 1), elementwise, in the dtype of u; increasing in u."""


def _normal(u: Array) -> Array:
    """The standard normal's quantile; u = 0 counts as half of the last place, so that it is finite."""
    least = jnp.nextafter(jnp.asarray(-1, u.dtype), jnp.asarray(0, u.dtype))
    return jnp.asarray(2**0.5, u.dtype) * erfinv(2 * u + least)


def within(process: Process, share: Array) -> Array:
    """The time that lies a share in [0, 1] into the span, no rounding leading out of its lower end."""
    t_min, t_max = (jnp.asarray(end, share.dtype) for end in process.time_span)
    return jnp.maximum(share * (t_max - t_min) + t_min, t_min)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformTime(TimeSampling):
    """Uniform over the process's span."""

    def quantile(self, u: Array, process: Process) -> Array:
        return within(process, u)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class GridTime(TimeSampling):
    """One of `steps` times, each as often, at equal distances over the process's span: those of a chain of steps."""

    steps: int = 1000
    """Number of times."""

    def __post_init__(self):
        require(self.steps >= 2, f"GridTime needs steps >= 2, got {self.steps}")

    def quantile(self, u: Array, process: Process) -> Array:
        return within(process, jnp.floor(u * self.steps) / (self.steps - 1))


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormalTime(TimeSampling):
    """log(sigma / alpha) is normal, as in EDM; times outside the process's span are moved to its ends."""

    mean: float = -1.2
    """Mean of log(sigma / alpha)."""
    std: float = 1.2
    """Standard deviation of log(sigma / alpha)."""

    def __post_init__(self):
        require(self.std > 0, f"LogNormalTime needs std > 0, got {self.std}")

    def quantile(self, u: Array, process: Process) -> Array:
        log_noise = self.mean + self.std * _normal(u)
        return jnp.clip(process.time(-2 * log_noise), *process.time_span)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormalTime(TimeSampling):
    """The logit of t, as a share of the process's span, is normal (Stable Diffusion 3, arXiv:2403.03206)."""

    mean: float = 0.0
    """Mean of the logit; above zero prefers noisy times."""
    std: float = 1.0
    """Standard deviation of the logit."""

    def __post_init__(self):
        require(self.std > 0, f"LogitNormalTime needs std > 0, got {self.std}")

    def quantile(self, u: Array, process: Process) -> Array:
        return within(process, jax.nn.sigmoid(self.mean + self.std * _normal(u)))


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogUniformTime(TimeSampling):
    """log(sigma / alpha) is uniform between its values at the ends of the process's span, which must be finite."""

    def quantile(self, u: Array, process: Process) -> Array:
        t_min, t_max = process.time_span
        with jax.ensure_compile_time_eval():
            clean, noisy = process.log_snr(jnp.asarray([t_min, t_max], u.dtype))
            require(
                jnp.isfinite(noisy),
                f"LogUniformTime cannot be used with {process}: its log-SNR at {t_max} is infinite; use UniformTime",
            )
        return jnp.clip(process.time(clean + u * (noisy - clean)), t_min, t_max)


def low_discrepancy(key: Key, number: Array) -> Array:
    """u [B] in [0, 1) for the examples in the places `number` [B] (integers) of a step's batch; `key` is the step's.

    The golden ratio's additive sequence with a random shift, u = (shift + number / golden) mod 1, in integers of 32
    bits. Each u alone is uniform, and u of place 17 is what it is in any batch, on any device; together, the first n
    are spread nearly evenly whatever n is, which takes most of the variance from a mean over them (the aim of
    arXiv:2107.00630, whose spacing of 1/n ties a place to the size of the batch).
    """
    golden = jnp.uint32(round(2**32 / ((1 + 5**0.5) / 2)))
    bits = jax.random.bits(key, dtype=jnp.uint32) + golden * number.astype(jnp.uint32)
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)
