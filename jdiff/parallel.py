"""Processes that train together, meshes over their devices, and how arrays lie on them.

Axes: `data` (the batch is split, parameters are copies) and `fsdp` (the batch is split, and so are large parameters,
their optimizer state and their averages). Each may be 1. The global batch is the same arithmetic on any mesh.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jdiff.typing import Array

# An array of fewer values is copied to every device: gathering it would cost more than it saves.
_SMALLEST_SPLIT = 2**14


_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SCHEDULERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # what srun and mpirun have started, not what is booked


def join() -> None:
    """Joins the processes of a run where the environment says that there are several; to be called before JAX is used.

    By hand: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. JAX itself reads
    what Slurm and Open MPI say, and with JAX_NUM_PROCESSES=auto whatever else it knows, a Cloud TPU pod say. Raises
    ValueError where what is given by hand does not fit together.
    """
    given = {name: os.environ[name] for name in _BY_HAND if os.environ.get(name)}
    if given.get("JAX_NUM_PROCESSES") == "auto" or (
        not given and any(int(os.environ.get(name, "1")) > 1 for name in _SCHEDULERS)
    ):
        jax.distributed.initialize()
    elif given:
        if len(given) < len(_BY_HAND):
            missing = ", ".join(name for name in _BY_HAND if name not in given)
            raise ValueError(f"several processes need {', '.join(_BY_HAND)}; missing: {missing}")
        address, count, number = given.values()
        if not (count.isdigit() and number.isdigit() and int(number) < int(count)):
            raise ValueError(f"JAX_PROCESS_ID must be in 0..JAX_NUM_PROCESSES - 1; got {number} of {count}")
        jax.distributed.initialize(address, int(count), int(number))


def wait_for_all(where: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices each axis has."""

    data: int | None = None
    """Data-parallel copies; None for as many as there are devices."""
    fsdp: int = 1
    """Devices that share one copy of the parameters."""

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over `devices`: those of all processes unless given. Raises ValueError if their number does not
        fit."""
        devices = jax.devices() if devices is None else devices
        count = len(devices)
        data = count // self.fsdp if self.data is None else self.data
        if data < 1 or self.fsdp < 1 or data * self.fsdp > count:
            raise ValueError(f"a mesh of data={self.data} x fsdp={self.fsdp} does not fit {count} devices")
        if self.data is None and data * self.fsdp != count:
            raise ValueError(f"fsdp={self.fsdp} does not divide {count} devices; give data as well to use fewer")
        return _laid_out((data, self.fsdp), ("data", "fsdp"), devices[: data * self.fsdp])


def _laid_out(shape: tuple[int, ...], names: tuple[str, ...], devices: Sequence[Any]) -> jax.sharding.Mesh:
    """The mesh, the first axis of which alone reaches over slices, where devices are of several."""
    kinds = (AxisType.Auto,) * len(names)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(shape, names, kinds, devices=devices)
    if shape[0] % slices:
        raise ValueError(f"mesh: {names[0]}={shape[0]} must be a multiple of the {slices} slices that devices are of")
    inside, between = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
    return jax.sharding.Mesh(create_hybrid_device_mesh(inside, between, devices), names, axis_types=kinds)


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


def host_share(mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """Which slice of each batch is this process's, and of how many. Raises ValueError where its devices do not lie side
    by side in the mesh, or processes have different numbers of them."""
    owners = [device.process_index for device in mesh.devices.flat]
    each = len(owners) // len(set(owners))
    blocks = [set(owners[start : start + each]) for start in range(0, len(owners), each)]
    own = {jax.process_index()}
    if any(len(block) > 1 for block in blocks) or own not in blocks:
        raise ValueError(f"the mesh must hold the devices of each process side by side; its devices are of {owners}")
    return blocks.index(own), len(blocks)


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
