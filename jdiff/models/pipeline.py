"""A stack of blocks as stages on several devices, through which the batch passes in pieces (GPipe, 1811.06965).

Of S stages and M pieces, stage s computes piece t - s at tick t = 0, ..., M + S - 2; then what it has goes one stage
further. Written as GSPMD wants it (2105.04663, 3.3): the stages are a leading axis of one array, split over the
axis `pipeline` of the mesh; all compute at once, and passing on is a shift along that axis. A share (S - 1) / (M + S -
1) of the ticks a stage has no piece of its own: it computes another again, and nobody reads that.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdiff.models import ambient

_PIECES = 4  # a stage, at most: then a fifth of the time or less is waited, and pieces are no smaller than need be


def pipelined(stage: Callable[[Any, Any, tuple], Any], x: Any, state: Any, inputs: tuple, stages: int) -> Any:
    """What stage(x, state, inputs) -> x gives for all blocks in a row, where `state` holds them along the first axis of
    its arrays, a multiple of `stages`.

    Of x and `inputs`, JAX arrays as long as the first of x are cut into pieces with the batch, scalars of x go with a
    piece, and all else is the same for all.
    """
    batch = jax.tree.leaves(x)[0].shape[0]
    pieces = _pieces(batch, stages)
    is_rows = lambda leaf: isinstance(leaf, jax.Array) and leaf.shape[:1] == (batch,)
    leaves, structure = jax.tree.flatten((x, inputs))
    moving = [is_rows(leaf) for leaf in leaves]
    scalars = range(len(jax.tree.leaves(x)))  # x alone comes out again, so that all of it goes with a piece
    goes = [i for i, rows in enumerate(moving) if rows or i in scalars]

    def cut(i: int) -> Any:
        leaf = jnp.asarray(leaves[i]) if not moving[i] else leaves[i]
        if not moving[i]:
            return jnp.broadcast_to(leaf, (pieces, *leaf.shape))
        # Every M-th row: a device's own rows, which stay where they are.
        return leaf.reshape(batch // pieces, pieces, *leaf.shape[1:]).swapaxes(0, 1)

    def one(state: Any, piece: list) -> list:
        values = list(leaves)
        for i, value in zip(goes, piece, strict=True):
            values[i] = value
        x, inputs = jax.tree.unflatten(structure, values)
        return [*jax.tree.leaves(stage(x, state, inputs)), *piece[len(scalars) :]]

    def shift(held: Any, new: Any) -> Any:
        return _placed(jnp.concatenate([new[None], held[:-1]]), batch // pieces)

    def tick(held: list, t: Any) -> tuple[list, list]:
        new = [jax.lax.dynamic_index_in_dim(leaf, jnp.minimum(t, pieces - 1), keepdims=False) for leaf in cuts]
        held = jax.vmap(one)(staged, jax.tree.map(shift, held, new))
        return held, [leaf[-1] for leaf in held[: len(scalars)]]

    staged = jax.tree.map(lambda leaf: _staged(leaf, stages), state)
    cuts = [cut(i) for i in goes]
    # Whatever is computed before the first piece arrives must be finite, or its gradient is not zero.
    held = [_placed(jnp.broadcast_to(leaf[0], (stages, *leaf.shape[1:])), batch // pieces) for leaf in cuts]
    _, out = jax.lax.scan(tick, held, jnp.arange(pieces + stages - 1))
    whole = [
        leaf[stages - 1 :].swapaxes(0, 1).reshape(batch, *leaf.shape[2:]) if moving[i] else leaf[-1]
        for i, leaf in enumerate(out)
    ]
    return jax.tree.unflatten(jax.tree.structure(x), whole)


def _pieces(batch: int, stages: int) -> int:
    """The most that cut the batch evenly on each device, up to `_PIECES` a stage; one where that cannot be."""
    slices = ambient.size(*ambient.BATCH)
    own = batch // slices if batch % slices == 0 else 1
    return max(count for count in range(1, _PIECES * stages + 1) if own % count == 0)


def _staged(leaf: Any, stages: int) -> Any:
    """[depth, ...] -> [stages, depth / stages, ...]."""
    return ambient.split(leaf.reshape(stages, leaf.shape[0] // stages, *leaf.shape[1:]), "pipeline")


def _placed(held: Any, rows: int) -> Any:
    """[stages, rows, ...], each stage on its devices, its rows split as the batch is."""
    even = held.ndim > 1 and rows % ambient.size(*ambient.BATCH) == 0
    return ambient.split(held, "pipeline", *([ambient.BATCH] if even else []))
