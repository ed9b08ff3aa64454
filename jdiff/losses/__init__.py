"""What is minimised: per-example losses, where in time an example is trained, and the variational bound."""

from jdiff.losses.base import Loss, diffusion_loss, noise
from jdiff.losses.bound import Bound, continuous_bound, discretized_log_likelihood, variational_bound
from jdiff.losses.history import History, LossAware
from jdiff.losses.times import (
    GridTime,
    LogitNormalTime,
    LogNormalTime,
    LogUniformTime,
    TimeSampling,
    UniformTime,
    low_discrepancy,
)
from jdiff.losses.variational import HybridLoss, VariationalLoss
from jdiff.losses.weighted import (
    EDMLoss,
    LikelihoodLoss,
    MinSNRLoss,
    P2Loss,
    ScoreMatchingLoss,
    SimpleLoss,
    VelocityLoss,
    VLoss,
    X0Loss,
)

__all__ = [
    "Bound",
    "EDMLoss",
    "GridTime",
    "History",
    "HybridLoss",
    "LikelihoodLoss",
    "LogNormalTime",
    "LogUniformTime",
    "LogitNormalTime",
    "Loss",
    "LossAware",
    "MinSNRLoss",
    "P2Loss",
    "ScoreMatchingLoss",
    "SimpleLoss",
    "TimeSampling",
    "UniformTime",
    "VLoss",
    "VariationalLoss",
    "VelocityLoss",
    "X0Loss",
    "continuous_bound",
    "diffusion_loss",
    "discretized_log_likelihood",
    "low_discrepancy",
    "noise",
    "variational_bound",
]
