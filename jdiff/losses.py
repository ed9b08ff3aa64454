"""Per-example training losses: E over t and eps of a weighted squared error of the prediction, mean over its values.

    simple     |eps_hat - eps|^2                                   (L_simple of DDPM, arXiv:2006.11239, eq. 14)
    EDM        (s^2 + a^2 d^2) / (s d)^2 |x0_hat - x0|^2           (EDM, arXiv:2206.00364, table 1)
    velocity   |u_hat - u|^2, u = alpha' x0 + sigma' eps           (flow matching, arXiv:2210.02747)

with a = alpha(t), s = sigma(t) and d = sigma_data.
"""

import abc
import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from jdiff import rng
from jdiff.prediction import Prediction
from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.typing import Array, Cond, Key, Predictor, Time


def _mean_square(error: Array) -> Array:
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


class Loss(abc.ABC):
    """A weighting of the prediction's squared error."""

    @abc.abstractmethod
    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        """Loss of each example, [B]; `truth` holds the data and the noise, [B, ...] each."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleLoss(Loss):
    """Squared error of the noise."""

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        return _mean_square(prediction.eps - truth.eps)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMLoss(Loss):
    """Squared error of the data, weighted so that a network with EDM's preconditioning starts at one everywhere."""

    sigma_data: float = 0.5
    """Standard deviation of the data, per value; that of the preconditioning."""

    def __post_init__(self):
        require(self.sigma_data > 0, f"EDMLoss needs sigma_data > 0, got {self.sigma_data}")

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        data, sigma = process.alpha(t) * self.sigma_data, process.sigma(t)
        weight = (sigma**2 + data**2) / (sigma * self.sigma_data) ** 2
        return weight * _mean_square(prediction.x0 - truth.x0)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class VelocityLoss(Loss):
    """Squared error of the velocity: flow matching."""

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        return _mean_square(prediction.velocity(process, t) - truth.velocity(process, t))


class TimeSampling(abc.ABC):
    """Where in time an example is trained."""

    @abc.abstractmethod
    def __call__(self, key: Key, process: Process) -> Array:
        """One time inside the process's span: a scalar of JAX's default float dtype."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformTime(TimeSampling):
    """Uniform over the process's span."""

    def __call__(self, key: Key, process: Process) -> Array:
        t_min, t_max = process.time_span
        return jax.random.uniform(key, minval=t_min, maxval=t_max)


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

    def __call__(self, key: Key, process: Process) -> Array:
        log_noise = self.mean + self.std * jax.random.normal(key)
        return jnp.clip(process.time(-2 * log_noise), *process.time_span)


def noise(keys: Key, process: Process, times: TimeSampling, x0: Array) -> tuple[Array, Array]:
    """The times [B] and the noise [B, ...] of a batch; row b depends on keys[b] alone."""
    t = jax.vmap(lambda key: times(key, process))(rng.named(keys, "time"))
    return t, rng.normal(rng.named(keys, "noise"), x0)


def diffusion_loss(
    keys: Key, predict: Predictor, process: Process, loss: Loss, times: TimeSampling, x0: Array, cond: Cond
) -> tuple[Array, Array]:
    """Losses [B] and times [B] of a batch x0 [B, ...] with conditions `cond`, with one key an example."""
    t, eps = noise(keys, process, times, x0)
    prediction = predict(process.perturb(x0, eps, t), t, cond)
    return loss(process, prediction, Prediction(x0, eps), t), t
