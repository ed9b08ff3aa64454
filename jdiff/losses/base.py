"""Training losses: an expectation over t and eps of what a prediction costs, one number an example."""

import abc

import jax
import jax.numpy as jnp

from jdiff import rng
from jdiff.losses.times import TimeSampling
from jdiff.prediction import Parameterization, Prediction
from jdiff.processes import Process
from jdiff.typing import Array, Cond, Key, Predictor, Time


def mean_square(error: Array) -> Array:
    """Mean over all axes but the first, [B, ...] -> [B]."""
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


def snr(process: Process, t: Time) -> Array:
    """(alpha / sigma)^2, with a finite slope where alpha is zero, which the log's is not."""
    return (process.alpha(t) / process.sigma(t)) ** 2


class Loss(abc.ABC):
    """What a prediction costs."""

    def check(self, parameterization: Parameterization, times: TimeSampling) -> None:  # noqa: B027 - most accept all
        """Raises ValueError if this loss means nothing with that parameterization or those times."""

    @abc.abstractmethod
    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        """Loss of each example, [B], a mean over its values; `truth` holds the data and the noise, [B, ...] each."""


def noise(keys: Key, process: Process, times: TimeSampling, x0: Array, u: Array | None = None) -> tuple[Array, Array]:
    """The times [B] and the noise [B, ...] of a batch; row b depends on keys[b] (and u[b]) alone.

    `u` [B] in [0, 1) are the quantiles of the times: drawn from the keys, independently, unless given
    (`low_discrepancy`, `LossAware`).
    """
    if u is None:
        u = jax.vmap(jax.random.uniform)(rng.named(keys, "time"))
    return times.quantile(u, process), rng.normal(rng.named(keys, "noise"), x0)


def diffusion_loss(
    keys: Key,
    predict: Predictor,
    process: Process,
    loss: Loss,
    times: TimeSampling,
    x0: Array,
    cond: Cond,
    u: Array | None = None,
) -> tuple[Array, Array]:
    """Losses [B] and times [B] of a batch x0 [B, ...] with conditions `cond`, with one key an example; `u` as in
    `noise`."""
    t, eps = noise(keys, process, times, x0, u)
    prediction = predict(process.perturb(x0, eps, t), t, cond)
    return loss(process, prediction, Prediction(x0, eps), t), t
