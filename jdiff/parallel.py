"""Meshes and how arrays lie on them.

Axes: `data` (the batch is split, parameters are copies) and `fsdp` (the batch is split, and so are large parameters,
their optimizer state and their averages). Each may be 1. The global batch is the same arithmetic on any mesh.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jdiff.typing import Array

# An array of fewer values is copied to every device: gathering it would cost more than it saves.
_SMALLEST_SPLIT = 2**14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices each axis has."""

    data: int | None = None
    """Data-parallel copies; None for as many as there are devices."""
    fsdp: int = 1
    """Devices that share one copy of the parameters."""

    def build(self) -> jax.sharding.Mesh:
        """The mesh over the devices of all processes. Raises ValueError if their number does not fit."""
        count = jax.device_count()
        data = count // self.fsdp if self.data is None else self.data
        if data < 1 or self.fsdp < 1 or data * self.fsdp > count:
            raise ValueError(f"a mesh of data={self.data} x fsdp={self.fsdp} does not fit {count} devices")
        if self.data is None and data * self.fsdp != count:
            raise ValueError(f"fsdp={self.fsdp} does not divide {count} devices; give data as well to use fewer")
        devices = jax.devices()[: data * self.fsdp]
        return jax.make_mesh((data, self.fsdp), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch(mesh: jax.sharding.Mesh, batch_size: int) -> None:
    """Raises ValueError unless the batch splits evenly."""
    if batch_size % mesh.size:
        raise ValueError(f"batch_size {batch_size} must be a multiple of the {mesh.size} devices of the mesh")


def put_batch(mesh: jax.sharding.Mesh, batch: Any) -> Any:
    """A host's batch as global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), batch)


def state_sharding(mesh: jax.sharding.Mesh, abstract: Any) -> Any:
    """A sharding for each array of a state: the longest axis that `fsdp` divides is split; small arrays are copied."""

    def rule(leaf: Array | jax.ShapeDtypeStruct) -> NamedSharding:
        shards = mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(leaf.shape) if length % shards == 0]
        if shards == 1 or not axes or np.prod(leaf.shape) < _SMALLEST_SPLIT:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(rule, abstract)
