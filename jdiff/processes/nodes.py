"""A process known at given noise levels, with the network's label at each: a published schedule, to the number.

Its time is the noise's share of the scales, t = sigma / (alpha + sigma), in [0, 1]: zero is data, one is pure noise.
Alpha, sigma and the label take their given values at the nodes and are linear in t between them.
"""

import dataclasses
from typing import final

import jax.numpy as jnp
import numpy as np

from jdiff.processes.base import Process, require
from jdiff.pytree import pytree
from jdiff.typing import Array, Time


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Nodes(Process):
    """Levels with their labels, made by `of`. The first node is the data (alpha 1, sigma 0)."""

    times: Array | np.ndarray = dataclasses.field(repr=False)
    """Increasing, [n + 1], from zero."""
    alphas: Array | np.ndarray = dataclasses.field(repr=False)
    sigmas: Array | np.ndarray = dataclasses.field(repr=False)
    labels: Array | np.ndarray = dataclasses.field(repr=False)

    @classmethod
    def of(cls, alphas: np.ndarray, sigmas: np.ndarray, labels: np.ndarray) -> "Nodes":
        """Nodes of levels [n] in any order, with a label each; a level that is repeated with its label is one node.

        Times and arrays are float32; a level with a second label is a node one rounding later. Raises ValueError for a
        level without noise, or that is not finite."""
        return cls.placed(alphas, sigmas, labels)[0]

    @classmethod
    def placed(cls, alphas: np.ndarray, sigmas: np.ndarray, labels: np.ndarray) -> tuple["Nodes", np.ndarray]:
        """The process that `of` makes, and the time [n] of each level."""
        levels = np.stack([alphas, sigmas, labels]).astype(np.float64)
        require(
            bool(np.isfinite(levels).all() and (levels[1] > 0).all() and (levels[0] >= 0).all()),
            f"levels must be finite, with alpha >= 0 and sigma > 0, got {levels}",
        )
        labels_at: dict[float, float] = {}
        at = share(levels[0], levels[1])
        for i, label in enumerate(levels[2]):
            while labels_at.setdefault(float(at[i]), label) != label:
                at[i] = np.nextafter(at[i], np.float32(2))
        times, first = np.unique(at, return_index=True)
        alphas, sigmas, labels = levels[:, first]
        add = lambda start, rest: np.append(start, rest).astype(np.float32)
        times = np.append(np.float32(0), times)
        return cls(times=times, alphas=add(1, alphas), sigmas=add(0, sigmas), labels=add(0, labels)), at

    @property
    def time_span(self) -> tuple[float, float]:
        return self.times[1], self.times[-1]  # pyright: ignore[reportReturnType]  of a pytree: values when compiled

    def _at(self, t: Time, values: Array | np.ndarray) -> Array:
        t = jnp.asarray(t)
        times, values = jnp.asarray(self.times, t.dtype), jnp.asarray(values, t.dtype)
        right = jnp.clip(jnp.searchsorted(times, t), 1, len(times) - 1)
        fraction = (t - times[right - 1]) / (times[right] - times[right - 1])
        # Exact at the nodes, however far apart their values lie.
        return (1 - fraction) * values[right - 1] + fraction * values[right]

    def alpha(self, t: Time) -> Array:
        return self._at(t, self.alphas)

    def sigma(self, t: Time) -> Array:
        return self._at(t, self.sigmas)

    def noise_label(self, t: Time) -> Array:
        return self._at(t, self.labels)

    def log_snr(self, t: Time) -> Array:
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time(self, log_snr: Time) -> Array:
        log_snr = jnp.asarray(log_snr)
        dtype = log_snr.dtype
        times, alphas, sigmas = (jnp.asarray(values, dtype) for values in (self.times, self.alphas, self.sigmas))
        known = 2 * (jnp.log(alphas) - jnp.log(sigmas))  # decreasing, from infinity
        at = jnp.clip(jnp.searchsorted(-known, -log_snr, side="right") - 1, 0, len(times) - 2)
        ratio = jnp.exp(log_snr / 2)
        # alpha = ratio * sigma, both linear in the fraction of the interval
        above = ratio * sigmas[at] - alphas[at]
        fraction = above / (alphas[at + 1] - alphas[at] - ratio * (sigmas[at + 1] - sigmas[at]))
        return times[at] + fraction * (times[at + 1] - times[at])


def share(alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The time of levels: sigma / (alpha + sigma), float32."""
    return (np.asarray(sigma, np.float64) / (np.asarray(alpha, np.float64) + sigma)).astype(np.float32)
