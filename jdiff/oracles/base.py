"""What an oracle is: a distribution of data x0 in D dimensions, whose noised versions are known in closed form.

For x0 = c + std z with z ~ N(0, I), x_t = alpha c + sqrt(S) w with S = alpha^2 std^2 + sigma^2 and w ~ N(0, I), so
E[x0 | x_t] = m + alpha std^2 / S (x - alpha m) and E[eps | x_t] = sigma / S (x - alpha m), with m = E[c | x_t].
"""

import abc

from jdiff.prediction import Prediction
from jdiff.processes import Process, match
from jdiff.typing import Array, Denoiser, Key, Time


class Distribution(abc.ABC):
    """A distribution of data with exact answers at x [B, D] and t [] or [B]. Its values are frozen pytrees.

    They are computed in the dtype of x. At t = 0 the answers are those of the data; where the data has no density (a
    variance of zero), they are not finite.
    """

    @abc.abstractmethod
    def predict(self, process: Process, x: Array, t: Time) -> Prediction:
        """E[x0 | x_t] and E[eps | x_t], [B, D] each; score and velocity are the prediction's."""

    @abc.abstractmethod
    def log_density(self, process: Process, x: Array, t: Time) -> Array:
        """log p_t(x) in nats, [B]."""

    @abc.abstractmethod
    def sample(self, key: Key, n: int) -> Array:
        """n draws of the data, [n, D]."""

    @abc.abstractmethod
    def moments(self) -> tuple[Array, Array]:
        """Mean [D] and covariance [D, D] of the data."""

    def denoiser(self, process: Process) -> Denoiser:
        """The exact denoiser of this distribution under a process."""
        return lambda x, t: self.predict(process, x, t)


def variance_around(process: Process, std: Array | float, x: Array, t: Time) -> Array:
    """S: the variance of x_t about alpha c, [] or [B, 1] beside x [B, D]."""
    return (match(process.alpha(t), x) * std) ** 2 + match(process.sigma(t), x) ** 2


def predict_around(process: Process, std: Array | float, centre: Array, x: Array, t: Time) -> Prediction:
    """The prediction for x [B, D], given m = E[c | x_t] = `centre` [B, D]."""
    alpha = match(process.alpha(t), x)
    residual = (x - alpha * centre) / variance_around(process, std, x, t)
    return Prediction(centre + alpha * std**2 * residual, match(process.sigma(t), x) * residual)
