"""The variational bound as a training loss, and its mixture with the simple one (arXiv:2102.09672, section 3.1).

A chain of T times has T terms besides the prior's (`bound.py`). With t drawn from them, T times the term of t has the
bound as its expectation:

    L_vlb = prior + T (term of t)           L_hybrid = L_simple + lambda L_vlb, the mean held fixed in L_vlb

in nats, divided by the number of an example's values as every loss is.
"""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from jdiff.losses.base import Loss, mean_square
from jdiff.losses.bound import Decoder, prior_kl, reconstruction, step_kl
from jdiff.losses.times import GridTime, TimeSampling, within
from jdiff.prediction import LearnedVariance, Parameterization, Prediction
from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.typing import Array, Time


def _check_times(loss: "VariationalLoss | HybridLoss", times: TimeSampling) -> None:
    wanted = GridTime(steps=loss.steps)
    require(times == wanted, f"{type(loss).__name__} with steps={loss.steps} needs times {wanted}, got {times}")


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class VariationalLoss(Loss):
    """The bound of the chain of `steps` equal steps in t, for a fixed (beta_tilde) or a learned variance."""

    steps: int = 1000
    """Times of the chain; those of `GridTime`."""
    decoder: Decoder = "discretized"
    """Of images of 256 levels ("discretized") or of real values ("gaussian")."""

    def __post_init__(self):
        require(self.steps >= 2, f"VariationalLoss needs steps >= 2, got {self.steps}")
        require(
            self.decoder in ("discretized", "gaussian"),
            f"decoder must be 'discretized' or 'gaussian', got {self.decoder!r}",
        )

    def check(self, parameterization: Parameterization, times: TimeSampling) -> None:
        _check_times(self, times)

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        x0, (t_min, t_max) = truth.x0, process.time_span
        t = jnp.asarray(t, x0.dtype)
        number = jnp.round((t - t_min) / (t_max - t_min) * (self.steps - 1))
        s = within(process, (number - 1) / (self.steps - 1))
        # At the first time, s is t and the KL is zero; elsewhere, the reconstruction is another time's.
        last = reconstruction(process, prediction, x0, t_min, self.decoder)
        term = jnp.where(number > 0, step_kl(process, prediction, x0, s, t), last)
        return (prior_kl(process, x0, t_max) + self.steps * term) / x0[0].size


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridLoss(Loss):
    """The simple loss for the mean, and a little of the bound for the variance, which alone it moves."""

    steps: int = 1000
    """Times of the chain; those of `GridTime`."""
    weight: float = 0.001
    """Of the bound."""
    decoder: Decoder = "discretized"
    """Of images of 256 levels ("discretized") or of real values ("gaussian")."""

    def __post_init__(self):
        VariationalLoss(steps=self.steps, decoder=self.decoder)
        require(self.weight > 0, f"HybridLoss needs weight > 0, got {self.weight}")

    def check(self, parameterization: Parameterization, times: TimeSampling) -> None:
        _check_times(self, times)
        require(
            isinstance(parameterization, LearnedVariance),
            f"HybridLoss needs the parameterization LearnedVariance, got {parameterization}",
        )

    def __call__(self, process: Process, prediction: Prediction, truth: Prediction, t: Time) -> Array:
        held = jax.lax.stop_gradient(Prediction(prediction.x0, prediction.eps))
        held = dataclasses.replace(held, variance=prediction.variance)
        bound = VariationalLoss(steps=self.steps, decoder=self.decoder)(process, held, truth, t)
        return mean_square(prediction.eps - truth.eps) + self.weight * bound
