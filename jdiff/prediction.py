"""What a network says about x_t, in one form: `Prediction(x0, eps)`, with x_t = alpha x0 + sigma eps.

A `Parameterization` turns a raw network output F into it. With a = alpha(t), s = sigma(t) and a', s' their slopes:

    eps        eps = F                          x0 = (x - s F) / a
    x0         x0 = F                           eps = (x - a F) / s
    v          x0 = (a x - s F) / (a^2 + s^2)   eps = (s x + a F) / (a^2 + s^2)   F = a eps - s x0 (arXiv:2202.00512)
    score      eps = -s F                       x0 = (x + s^2 F) / a              (arXiv:2011.13456)
    velocity   x0 = (s' x - s F) / d            eps = (a F - a' x) / d            d = a s' - a' s, F = a' x0 + s' eps
    EDM        x0 = c_skip x + c_out F, with c_skip, c_out, c_in and c_noise of arXiv:2206.00364, table 1, for x / a.

`LearnedVariance` doubles the channels of any of them: the second half, F', says where the variance of a reverse step
lies between its bounds, log variance = w log beta + (1 - w) log beta_tilde with w = (F' + 1) / 2 (arXiv:2102.09672,
eq. 15). beta is the variance of q(x_t | x_s), beta_tilde that of q(x_s | x_t, x0), s < t.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp

from jdiff.processes import Process, match
from jdiff.processes.base import require
from jdiff.pytree import pytree
from jdiff.typing import Array, Cond, Predictor, Time


@pytree
@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted data and noise, each [B, ...], consistent with the x_t they were made from."""

    x0: Array
    eps: Array
    variance: Array | None = None
    """Where the reverse step's log variance lies from beta_tilde's (0) to beta's (1), [B, ...]; see
    `reverse_log_variance`. None where the variance is not learned."""

    def score(self, process: Process, t: Time) -> Array:
        """Gradient of log p_t at x_t: -eps / sigma."""
        return -self.eps / match(process.sigma(t), self.eps)

    def velocity(self, process: Process, t: Time) -> Array:
        """dx/dt of the probability-flow ODE: alpha' x0 + sigma' eps."""
        return match(process.alpha_slope(t), self.x0) * self.x0 + match(process.sigma_slope(t), self.eps) * self.eps

    def v(self, process: Process, t: Time) -> Array:
        """alpha eps - sigma x0 (Salimans and Ho 2022, arXiv:2202.00512)."""
        return match(process.alpha(t), self.eps) * self.eps - match(process.sigma(t), self.x0) * self.x0


class Parameterization(abc.ABC):
    """How a raw network output becomes a `Prediction`."""

    needs_signal = False  # whether the formulas divide by alpha, so that a zero signal-to-noise ratio is refused

    def check(self, process: Process) -> None:
        """Raises ValueError if the process reaches a time at which this parameterization says nothing about x0."""
        if not self.needs_signal:
            return
        with jax.ensure_compile_time_eval():
            alpha = process.alpha(process.time_span[1])
            require(
                alpha > 0,
                f"{type(self).__name__} cannot be used with {process}: its signal-to-noise ratio at "
                f"t = {process.time_span[1]} is zero; use X0, V or Velocity",
            )

    def input_scale(self, process: Process, t: Array) -> Array:
        """What the network's input is multiplied by, in the shape of t."""
        return jnp.ones_like(t)

    def noise_label(self, process: Process, t: Array) -> Array:
        """What the network is told about the noise level, in the shape of t."""
        return process.noise_label(t)

    def out_channels(self, channels: int) -> int:
        """Channels (length of the last axis) that the network must return for data of `channels` channels."""
        return channels

    @abc.abstractmethod
    def prediction(self, process: Process, raw: Array, x: Array, t: Time) -> Prediction:
        """The prediction for x [B, ..., C] at t [] or [B], from the raw output [B, ..., out_channels(C)]."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Eps(Parameterization):
    """The network predicts the noise (DDPM)."""

    needs_signal = True

    def prediction(self, process: Process, raw: Array, x: Array, t: Time) -> Prediction:
        alpha, sigma = match(process.alpha(t), x), match(process.sigma(t), x)
        return Prediction((x - sigma * raw) / alpha, raw)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class X0(Parameterization):
    """The network predicts the data."""

    def prediction(self, process: Process, raw: Array, x: Array, t: Time) -> Prediction:
        alpha, sigma = match(process.alpha(t), x), match(process.sigma(t), x)
        return Prediction(raw, (x - alpha * raw) / sigma)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class V(Parameterization):
    """The network predicts v = alpha eps - sigma x0."""

    def prediction(self, process: Process, raw: Array, x: Array, t: Time) -> Prediction:
        alpha, sigma = match(process.alpha(t), x), match(process.sigma(t), x)
        norm = alpha**2 + sigma**2
        return Prediction((alpha * x - sigma * raw) / norm, (sigma * x + alpha * raw) / norm)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Parameterization):
    """The network predicts the score, the gradient of log p_t."""

    needs_signal = True

    def prediction(self, process: Process, raw: Array, x: Array, t: Time) -> Prediction:
        alpha, sigma = match(process.alpha(t), x), match(process.sigma(t), x)
        return Prediction((x + sigma**2 * raw) / alpha, -sigma * raw)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocity(Parameterization):
    """The network predicts dx/dt of the probability-flow ODE (flow matching)."""

    def prediction(self, process: Process, raw: Array, x: Array, t: Time) -> Prediction:
        alpha, sigma = match(process.alpha(t), x), match(process.sigma(t), x)
        alpha_slope, sigma_slope = match(process.alpha_slope(t), x), match(process.sigma_slope(t), x)
        det = alpha * sigma_slope - alpha_slope * sigma
        return Prediction((sigma_slope * x - sigma * raw) / det, (alpha * raw - alpha_slope * x) / det)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMPreconditioning(Parameterization):
    """EDM's preconditioning: input and target have unit variance at every noise level."""

    sigma_data: float = 0.5
    """Standard deviation of the data, per value."""

    needs_signal = True  # the noise label is log(sigma / alpha) / 4

    def __post_init__(self):
        require(self.sigma_data > 0, f"EDMPreconditioning needs sigma_data > 0, got {self.sigma_data}")

    def _scale(self, process: Process, t: Time) -> Array:
        return jnp.sqrt((process.alpha(t) * self.sigma_data) ** 2 + process.sigma(t) ** 2)

    def input_scale(self, process: Process, t: Array) -> Array:
        return 1 / self._scale(process, t)

    def noise_label(self, process: Process, t: Array) -> Array:
        return -process.log_snr(t) / 8

    def prediction(self, process: Process, raw: Array, x: Array, t: Time) -> Prediction:
        alpha, sigma = match(process.alpha(t), x), match(process.sigma(t), x)
        scale = match(self._scale(process, t), x)
        data = alpha * self.sigma_data
        x0 = (data * self.sigma_data / scale**2) * x + (sigma * self.sigma_data / scale) * raw
        return Prediction(x0, (sigma / scale**2) * x - (data / scale) * raw)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedVariance(Parameterization):
    """The network also predicts the variance of a reverse step, in a second half of its channels."""

    mean: Eps | X0 | V | Score | Velocity | EDMPreconditioning = Eps()
    """What the first half of the channels predicts."""

    def check(self, process: Process) -> None:
        self.mean.check(process)

    def input_scale(self, process: Process, t: Array) -> Array:
        return self.mean.input_scale(process, t)

    def noise_label(self, process: Process, t: Array) -> Array:
        return self.mean.noise_label(process, t)

    def out_channels(self, channels: int) -> int:
        return 2 * self.mean.out_channels(channels)

    def prediction(self, process: Process, raw: Array, x: Array, t: Time) -> Prediction:
        mean, variance = jnp.split(raw, 2, axis=-1)
        return dataclasses.replace(self.mean.prediction(process, mean, x, t), variance=(variance + 1) / 2)


def reverse_log_variance(process: Process, s: Time, t: Time, fraction: Array) -> Array:
    """Log variance of the reverse step t -> s, s < t, in the shape of `fraction` [B, ...] (arXiv:2102.09672, eq. 15).

    With beta = sigma_t^2 (1 - SNR_t / SNR_s) and beta_tilde = sigma_s^2 (1 - SNR_t / SNR_s), it runs from
    log beta_tilde at fraction 0 to log beta at 1; beta bounds the true variance where alpha_t is near alpha_s, and
    elsewhere a fraction may exceed 1. To the data, s = 0, beta_tilde would be zero: there and below the
    process's t_min, sigma_s is that of t_min.
    """
    log_sigma = lambda time: match(jnp.log(process.sigma(time)), fraction)
    low, high = log_sigma(jnp.maximum(s, process.time_span[0])), log_sigma(t)
    fresh = match(jnp.log(-jnp.expm1(process.log_snr(t) - process.log_snr(s))), fraction)
    return fresh + 2 * (low + fraction * (high - low))


def predictor(
    network: Callable[[Array, Array, Cond], Array], process: Process, parameterization: Parameterization
) -> Predictor:
    """Predictor (x [B, ..., C], t [] or [B], cond) -> Prediction of a network (x, noise_label [B], cond) -> raw.

    Raises ValueError if the parameterization cannot be used with the process, and, when called, if raw has not the
    shape [B, ..., out_channels(C)].
    """
    parameterization.check(process)

    def predict(x: Array, t: Time, cond: Cond) -> Prediction:
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        scaled = match(parameterization.input_scale(process, t), x) * x
        raw = network(scaled, parameterization.noise_label(process, t), cond)
        wanted = (*x.shape[:-1], parameterization.out_channels(x.shape[-1]))
        if raw.shape != wanted:
            raise ValueError(f"with {parameterization}, the network must return shape {wanted}, got {raw.shape}")
        return parameterization.prediction(process, raw, x, t)

    return predict
