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
SMALLEST_SPLIT = 2**14  # values of an array that `fsdp` splits, as in parallel/rules.py


def size(*axes: str) -> int:
    """Into how many parts these axes of the ambient mesh split; 1 without them, and where they are not the compiler's
    (inside `shard_map` and `pmap`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes if axis in mesh.auto_axes)


def platform() -> str:
    """What is compiled for: the devices of the mesh in use, which may be described and not there, else those here.

    Not `lax.platform_dependent`: its gradient keeps what the kernels of all platforms want to keep."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return described.platform if described is not None and described.platform else jax.default_backend()


def kernel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis along which `fsdp` splits a kernel, by the rule of `parallel/rules.py`; None where it does not, and
    where other axes split kernels or what they are multiplied with."""
    parts = size("fsdp")
    if parts == 1 or size("tensor", "context", "pipeline") > 1 or math.prod(shape) < SMALLEST_SPLIT:
        return None
    even = [axis for axis, length in enumerate(shape) if length % parts == 0]
    return max(even, key=lambda axis: shape[axis], default=None)


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
