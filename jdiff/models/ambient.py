"""The mesh that a network is traced under, where there is one: `jax.set_mesh` says it, no argument does.

Axes that networks know: `context` splits tokens, `pipeline` splits stacks of blocks, `data` and `fsdp` the batch.
Without them a network computes as ever.
"""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jdiff.typing import Array

ANY = PartitionSpec.UNCONSTRAINED  # an axis of an array that is split as the compiler likes
BATCH = ("data", "fsdp")


def size(*axes: str) -> int:
    """Into how many parts these axes of the ambient mesh split; 1 without them, and where they are not the compiler's
    (inside `shard_map` and `pmap`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes if axis in mesh.auto_axes)


def split(x: Array, *axes: Any) -> Array:
    """x with its first axes split over these axes of the mesh, and others as the compiler likes."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes, *(ANY,) * (x.ndim - len(axes))))


def in_place(x: Array) -> Array:
    """x [B, ...], split as the batch is where the mesh has an axis `fsdp`, and else as the compiler likes."""
    even = size("fsdp") > 1 and x.ndim > 0 and x.shape[0] % size(*BATCH) == 0
    return split(x, BATCH) if even else x


def along_batch(x: Array) -> Array:
    """x [B, ...], of which nothing but the batch is split, where the mesh has an axis `context`."""
    if size("context") == 1:
        return x
    even = x.shape[0] % size(*BATCH) == 0
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH) if even else PartitionSpec())


def along_context(tokens: Array) -> Array:
    """Tokens [B, N, ...], the second axis of which is split over `context`, where that divides it."""
    parts = size("context")
    return tokens if parts == 1 or tokens.shape[1] % parts else split(tokens, ANY, "context")
