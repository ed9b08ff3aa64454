"""What a network says about x_t, in one form: `Prediction(x0, eps)`, with x_t = alpha x0 + sigma eps.

A `Parameterization` turns a raw network output F into it. With a = alpha(t), s = sigma(t) and a', s' their slopes:

    eps        eps = F                          x0 = (x - s F) / a
    x0         x0 = F                           eps = (x - a F) / s
    v          x0 = (a x - s F) / (a^2 + s^2)   eps = (s x + a F) / (a^2 + s^2)   F = a eps - s x0 (arXiv:2202.00512)
    score      eps = -s F                       x0 = (x + s^2 F) / a              (arXiv:2011.13456)
    velocity   x0 = (s' x - s F) / d            eps = (a F - a' x) / d            d = a s' - a' s, F = a' x0 + s' eps
    EDM        x0 = c_skip x + c_out F, with c_skip, c_out, c_in and c_noise of arXiv:2206.00364, table 1, for x / a.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp

from jdiff.processes import Process, match
from jdiff.processes.base import require
from jdiff.typing import Array, Cond, Predictor, Time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted data and noise, each [B, ...], consistent with the x_t they were made from."""

    x0: Array
    eps: Array

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

    @abc.abstractmethod
    def prediction(self, process: Process, raw: Array, x: Array, t: Time) -> Prediction:
        """The prediction for x at t [] or [B], from the raw output; all arrays [B, ...]."""


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


def predictor(
    network: Callable[[Array, Array, Cond], Array], process: Process, parameterization: Parameterization
) -> Predictor:
    """Predictor (x [B, ...], t [] or [B], cond) -> Prediction of a network (x, noise_label [B], cond) -> raw [B, ...].

    Raises ValueError if the parameterization cannot be used with the process.
    """
    parameterization.check(process)

    def predict(x: Array, t: Time, cond: Cond) -> Prediction:
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        scaled = match(parameterization.input_scale(process, t), x) * x
        raw = network(scaled, parameterization.noise_label(process, t), cond)
        if raw.shape != x.shape:
            raise ValueError(f"the network must return the shape of its input, {x.shape}, got {raw.shape}")
        return parameterization.prediction(process, raw, x, t)

    return predict
