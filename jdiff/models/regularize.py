"""What training leaves out of residual blocks at random, with the rest made greater so that means stay what they are.

- Dropout (1207.0580): each number with probability `rate`; of a branch of a transformer what it ends with, in a
  residual block of a U-Net (DDPM, 2006.11239) what enters its second convolution.
- Stochastic depth (1603.09382): a whole branch f of x + f(x), for a whole example. Of L blocks, block l = 1, ..., L
  leaves out its branches with probability l / L times that of the last (the linear decay there).

Keys are one an example, so that what is left out of one depends neither on the others nor on where it is computed.
Inference calls none of these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jdiff.typing import Array, Key


@partial(jax.tree_util.register_dataclass, data_fields=["keys"], meta_fields=["dropout", "depth"])
@dataclass(frozen=True, kw_only=True)
class Regularization:
    """What a network leaves out in one update of training: `apply(..., regularization=...)`, made inside the update.

    Raises ValueError for a share outside [0, 1).
    """

    keys: Key
    """[B], one an example."""
    dropout: float = 0.0
    """Share of the numbers of each branch."""
    depth: float = 0.0
    """Share of the examples that pass by a branch of the last block."""

    def __post_init__(self):
        for name in ("dropout", "depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in [0, 1)")

    def branch(self, x: Array, block: Array, blocks: int, number: int) -> Array:
        """What is left of x [B, ...], branch `number` of block `block` = 0, 1, ... of `blocks`."""
        return self.whole(self.numbers(x, block, number), block, blocks, number)

    def numbers(self, x: Array, block: Array | int, number: int = 0) -> Array:
        """What dropout leaves."""
        return dropout(self._keys(block, number)[0], x, self.dropout) if self.dropout else x

    def whole(self, x: Array, block: Array | int, blocks: int, number: int = 0) -> Array:
        """What stochastic depth leaves."""
        rate = self.depth * (block + 1) / blocks
        return stochastic_depth(self._keys(block, number)[1], x, rate) if self.depth else x

    def _keys(self, block: Array | int, number: int) -> Key:
        """[2, B], for dropout and for stochastic depth."""
        fold = lambda key: jax.random.split(jax.random.fold_in(jax.random.fold_in(key, block), number))
        return jax.vmap(fold, out_axes=1)(self.keys)


def numbered(blocks: Sequence[Any]) -> None:
    """Tells residual blocks, in the order in which they are walked through, their `place`: number and count."""
    for number, block in enumerate(blocks):
        block.place = (number, len(blocks))


def regularized(
    regularization: Regularization | None, place: tuple[int, int], branch: Callable[[Array], Array], x: Array
) -> Array:
    """branch(x), of the residual block at a `place` that `numbered` gave: with dropout before and stochastic depth
    after it."""
    if regularization is None:
        return branch(x)
    return regularization.whole(branch(regularization.numbers(x, place[0])), *place)


def dropout(keys: Key, x: Array, rate: Array | float) -> Array:
    """[B, ...] with each number 0 with probability `rate`, else divided by 1 - rate; example b by keys[b]."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def stochastic_depth(keys: Key, x: Array, rate: Array | float) -> Array:
    """[B, ...] with each example 0 with probability `rate`, else divided by 1 - rate; example b by keys[b]."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
    keep = keep.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
