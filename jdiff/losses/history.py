"""Importance sampling of times by the history of their losses (improved DDPM, arXiv:2102.09672, section 3.3).

The unit interval of quantiles u (`times.py`) is cut into K bins; bin k is drawn with probability p_k, in proportion to
sqrt(E[L^2]) over its last losses, and the loss is weighted by 1 / (K p_k): E_p[L / (K p)] = E[L], and this p minimises
the variance. Until every bin's history is full, all bins are as likely. A little of the uniform distribution is mixed
in, so that no bin is lost.
"""

import dataclasses
from typing import NamedTuple, final

import jax
import jax.numpy as jnp

from jdiff.processes.base import require
from jdiff.typing import Array


class History(NamedTuple):
    """The last losses of each bin."""

    losses: Array  # float32 [K, length]; slot n % length holds the bin's n-th loss
    count: Array  # int32 [K]: losses seen


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossAware:
    """Draws times where losses are large. What changes is the `History`, passed in and returned."""

    bins: int = 100
    """Intervals of equal probability under the distribution of times."""
    length: int = 10
    """Losses remembered for each bin."""
    uniform: float = 1e-3
    """Share of the uniform distribution."""

    def __post_init__(self):
        require(self.bins >= 1, f"LossAware needs bins >= 1, got {self.bins}")
        require(self.length >= 1, f"LossAware needs length >= 1, got {self.length}")
        require(0 < self.uniform <= 1, f"LossAware needs 0 < uniform <= 1, got {self.uniform}")

    def init(self) -> History:
        """An empty history."""
        return History(jnp.zeros((self.bins, self.length), jnp.float32), jnp.zeros(self.bins, jnp.int32))

    def probabilities(self, history: History) -> Array:
        """p_k [K], which sums to one."""
        size = jnp.sqrt(jnp.mean(history.losses**2, axis=1))
        size = jnp.where((history.count >= self.length).all() & (size.sum() > 0), size, jnp.ones_like(size))
        return (1 - self.uniform) * size / size.sum() + self.uniform / self.bins

    def sample(self, history: History, u: Array) -> tuple[Array, Array]:
        """(quantiles [B] for `noise`, weights [B] of their losses) from u [B], uniform in [0, 1)."""
        p = self.probabilities(history)
        end = jnp.cumsum(p)
        k = jnp.minimum(jnp.searchsorted(end, u, side="right"), self.bins - 1)
        inside = jnp.clip((u - (end - p)[k]) / p[k], 0, 1)
        return jnp.minimum((k + inside) / self.bins, 1 - jnp.finfo(u.dtype).eps), 1 / (self.bins * p[k])

    def update(self, history: History, quantiles: Array, losses: Array) -> History:
        """The history with the losses [B] (before their weights) at `quantiles` [B] added, in their order."""
        k = jnp.clip((quantiles * self.bins).astype(jnp.int32), 0, self.bins - 1)
        member = jax.nn.one_hot(k, self.bins, dtype=jnp.int32)
        total = member.sum(axis=0)
        earlier = jnp.take_along_axis(jnp.cumsum(member, axis=0), k[:, None], axis=1)[:, 0] - 1
        slot = (history.count[k] + earlier) % self.length
        # Of more than `length` losses in one bin, only the last count; the others are sent outside and dropped.
        row = jnp.where(earlier >= total[k] - self.length, k, self.bins)
        kept = history.losses.at[row, slot].set(losses.astype(jnp.float32), mode="drop")
        return History(kept, history.count + total)
