"""From an array's path to its PartitionSpec, by one table; and why.

1. `pipeline` splits the first axis of what belongs to a stack of blocks (below `each`).
2. `tensor` splits what the table names, Megatron's way (1909.08053): the projections to queries, keys and values and
   the first layer of a two-layer network by their outputs, biases with them; what follows each by its inputs.
3. `fsdp` splits the longest axis that is left and that it divides, not that of the blocks, unless a block's array is
   small.

What an axis does not divide is copied along it, and `report` says so.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# An array of fewer values is copied along fsdp: gathering it would cost more than it saves.
_SMALLEST_SPLIT = 2**14

# The end of a path, the axis that `tensor` splits, and whether that axis is heads times their width.
_TENSOR = (
    (r"(to_[qkv]|add_[qkv]_proj)/(kernel|bias)", -1, True),
    (r"(to_out|to_add_out)/kernel", -2, True),
    (r"(ff|ff_context)/widen/(kernel|bias)", -1, False),
    (r"(ff|ff_context)/narrow/kernel", -2, False),
)


class Row(NamedTuple):
    """How one array lies on a mesh."""

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    copied: tuple[str, ...]
    """Why it is copied along an axis that splits other arrays; empty where it need not be."""


def _path(entries: Sequence[Any]) -> str:
    """Names of dicts and fields and numbers of tuples, by slashes."""
    return jax.tree_util.keystr(tuple(entries), simple=True, separator="/")


def _row(path: str, shape: Sequence[int], sizes: dict[str, int], heads: int | None) -> Row:
    spec: list[str | None] = [None] * len(shape)
    copied = []
    first = int("each" in path.split("/") and np.size(shape) > 0)
    if sizes["pipeline"] > 1 and first:
        if shape[0] % sizes["pipeline"]:
            copied.append(f"pipeline={sizes['pipeline']} does not divide {shape[0]} blocks")
        else:
            spec[0] = "pipeline"
    for pattern, axis, of_heads in _TENSOR if sizes["tensor"] > 1 else ():
        if re.search(rf"(^|/){pattern}$", path) and len(shape) >= first - axis:
            count, what = (heads, "heads") if of_heads and heads is not None else (shape[axis], "values")
            if count % sizes["tensor"]:
                copied.append(f"tensor={sizes['tensor']} does not divide {count} {what}")
            else:
                spec[axis] = "tensor"
    if sizes["fsdp"] > 1:
        free = [axis for axis in range(first, len(shape)) if spec[axis] is None and shape[axis] % sizes["fsdp"] == 0]
        if np.prod(shape[first:]) < _SMALLEST_SPLIT:
            copied.append(f"smaller than {_SMALLEST_SPLIT} values")
        elif not free:
            copied.append(f"fsdp={sizes['fsdp']} divides no axis that is left")
        else:
            spec[max(free, key=lambda axis: shape[axis])] = "fsdp"
    while spec and spec[-1] is None:
        spec.pop()
    return Row(path, tuple(shape), PartitionSpec(*spec), tuple(copied))


def report(mesh: jax.sharding.Mesh, abstract: Any, heads: int | None = None) -> list[Row]:
    """A row for each array of `abstract`, a pytree of arrays or their shapes, in its order; `heads` are those of the
    attention of a transformer, whose inner width is split only by whole ones."""
    leaves = jax.tree_util.tree_flatten_with_path(abstract)[0]
    return [_row(_path(entries), tuple(leaf.shape), dict(mesh.shape), heads) for entries, leaf in leaves]


def state_sharding(mesh: jax.sharding.Mesh, abstract: Any, heads: int | None = None) -> Any:
    """A sharding for each array of a state, as in `report`."""
    shardings = [NamedSharding(mesh, row.spec) for row in report(mesh, abstract, heads)]
    return jax.tree.unflatten(jax.tree.structure(abstract), shardings)


def summary(rows: Sequence[Row]) -> str:
    """One line: how many arrays and values are split, and how many are copied, by reason."""
    sizes = [int(np.prod(row.shape)) for row in rows]
    split = [size for row, size in zip(rows, sizes, strict=True) if any(row.spec)]
    reasons = Counter(reason for row in rows for reason in row.copied)
    copied = "".join(f"; {reason}: {count}" for reason, count in reasons.most_common())
    return f"{len(split)} of {len(rows)} arrays are split, {sum(split) / max(sum(sizes), 1):.1%} of the values{copied}"
