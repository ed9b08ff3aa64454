"""Losses that are a weighted squared error: mean over an example's values, times a function of the noise level.

Every error of one prediction is a multiple of every other one, since they agree on x_t. With a = alpha(t),
s = sigma(t), d = sigma_data and SNR = a^2 / s^2, |eps error|^2 = SNR |x0 error|^2, |score error| = |eps error| / s
and |v error|^2 = (a^2 + s^2)^2 / s^2 |x0 error|^2. So a loss is a weight, and the error beside it is one that is finite
where the loss is used:

    simple      1                  x eps error    (L_simple of DDPM, arXiv:2006.11239, eq. 14)
    x0, v       1                  x x0, v error  (arXiv:2202.00512)
    velocity    1                  x error of alpha' x0 + sigma' eps  (flow matching, arXiv:2210.02747)
    EDM         (s^2 + a^2 d^2) / (s d)^2  x x0 error  (arXiv:2206.00364, table 1)
    likelihood  -d SNR / dt        x x0 error     = g^2 x score error (arXiv:2101.09258); half of it is the bound's rate
    min-SNR     min(SNR, gamma)    x x0 error     = min(1, gamma / SNR) x eps error, and with a^2 + s^2 = 1
                                                  = min(SNR, gamma) / (SNR + 1) x v error (arXiv:2303.09556)
    P2          (k + SNR)^-gamma   x eps error    (arXiv:2204.00227)
    score matching   any           x score error  (arXiv:2011.13456, eq. 7); sigma^2 makes it simple, g^2 likelihood
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import final

import jax.numpy as jnp

from jdiff.losses.base import Loss, mean_square, snr
from jdiff.prediction import Prediction
from jdiff.processes import Process
from jdiff.processes.base import require, slope
from jdiff.typing import Array, Time


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleLoss(Loss):
    """Squared error of the noise."""

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        return mean_square(prediction.eps - truth.eps)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class X0Loss(Loss):
    """Squared error of the data."""

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        return mean_square(prediction.x0 - truth.x0)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class VLoss(Loss):
    """Squared error of v = alpha eps - sigma x0."""

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        return mean_square(prediction.v(process, t) - truth.v(process, t))


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class VelocityLoss(Loss):
    """Squared error of the velocity: flow matching."""

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        return mean_square(prediction.velocity(process, t) - truth.velocity(process, t))


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
        return weight * mean_square(prediction.x0 - truth.x0)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodLoss(Loss):
    """Denoising score matching weighted by g^2: with uniform times, twice the bound's diffusion term per value and
    unit of time."""

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        return -slope(partial(snr, process), t) * mean_square(prediction.x0 - truth.x0)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class MinSNRLoss(Loss):
    """Squared error of the data, weighted by the signal-to-noise ratio up to a limit."""

    gamma: float = 5.0
    """The greatest weight."""

    def __post_init__(self):
        require(self.gamma > 0, f"MinSNRLoss needs gamma > 0, got {self.gamma}")

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        weight = jnp.minimum(snr(process, t), self.gamma)
        return weight * mean_square(prediction.x0 - truth.x0)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class P2Loss(Loss):
    """Squared error of the noise, weighted down where little noise is left."""

    k: float = 1.0
    """Signal-to-noise ratio from which on the weight falls."""
    gamma: float = 1.0
    """How fast it falls; 0 is the simple loss."""

    def __post_init__(self):
        require(self.k > 0, f"P2Loss needs k > 0, got {self.k}")

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        weight = (self.k + snr(process, t)) ** -self.gamma
        return weight * mean_square(prediction.eps - truth.eps)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreMatchingLoss(Loss):
    """Squared error of the score with a weight of one's own. A function is not a plain value, so no experiment holds
    this loss."""

    weight: Callable[[Process, Time], Array]
    """(process, t) -> weight, in the shape of t."""

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        return self.weight(process, t) * mean_square(prediction.score(process, t) - truth.score(process, t))
