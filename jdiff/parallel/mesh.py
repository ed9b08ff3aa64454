"""Meshes over the devices of all processes, and how a batch lies on them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# What speaks least comes first, so that it lies furthest apart.
AXES = ("pipeline", "data", "fsdp", "context", "tensor")
BATCH = ("data", "fsdp")
"""The axes that split the batch; along the others it is the same."""
_OVERLAP = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices each axis has. Raises ValueError for an axis below 1, and for `pmap` with other axes."""

    data: int | None = None
    """Data-parallel copies; None for as many as there are devices."""
    fsdp: int = 1
    """Devices that share one copy of the parameters."""
    tensor: int = 1
    """Devices that share the heads and the inner width of each block of a transformer."""
    context: int = 1
    """Devices that share the tokens of each example."""
    pipeline: int = 1
    """Devices that share the blocks of a transformer, some after the others."""
    strategy: Literal["jit", "pmap"] = "jit"
    """How updates are compiled; `pmap` is for `data` alone, in one process."""

    def __post_init__(self):
        for axis in AXES:
            size = getattr(self, axis)
            if size is not None and size < 1:
                raise ValueError(f"mesh.{axis} must be at least 1, got {size}")
        if self.strategy not in ("jit", "pmap"):
            raise ValueError(f"mesh.strategy: {self.strategy!r} is not jit or pmap")
        if self.strategy == "pmap" and self._inner > 1:
            raise ValueError(f"mesh.strategy: pmap splits along data alone, got {self._said()}")

    @property
    def _inner(self) -> int:
        """Devices of one copy of the parameters."""
        return math.prod(getattr(self, axis) for axis in AXES if axis != "data")

    def _said(self) -> str:
        sizes = {axis: getattr(self, axis) for axis in AXES}
        return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1 or axis == "data")

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over `devices`: those of all processes unless given. It has all axes. Raises ValueError if their
        number does not fit."""
        devices = jax.devices() if devices is None else devices
        count, inner = len(devices), self._inner
        data = max(count // inner, 1) if self.data is None else self.data
        if data * inner > count:
            raise ValueError(f"a mesh of {self._said()} does not fit {count} devices")
        if self.data is None and data * inner != count:
            raise ValueError(f"mesh: {self._said()} does not divide {count} devices; give data as well to use fewer")
        if self.strategy == "pmap" and jax.process_count() > 1:
            raise ValueError(f"mesh.strategy: pmap works in one process, these are {jax.process_count()}")
        shape = tuple(data if axis == "data" else getattr(self, axis) for axis in AXES)
        return _laid_out(shape, devices[: data * inner])


def _laid_out(shape: tuple[int, ...], devices: Sequence[Any]) -> jax.sharding.Mesh:
    """The mesh where, of several slices, each holds a part of `data`, or else of `pipeline`: the axes that speak least
    reach over the slow network between slices."""
    kinds, slices = (AxisType.Auto,) * len(AXES), len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(shape, AXES, kinds, devices=devices)
    over = next((axis for axis in ("data", "pipeline") if shape[AXES.index(axis)] % slices == 0), None)
    if over is None:
        raise ValueError(f"mesh: data or pipeline must be a multiple of the {slices} slices that the devices are of")
    between = tuple(slices if axis == over else 1 for axis in AXES)
    inside = tuple(size // parts for size, parts in zip(shape, between, strict=True))
    return jax.sharding.Mesh(create_hybrid_device_mesh(inside, between, devices), AXES, axis_types=kinds)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def without_fsdp(sharding: NamedSharding) -> NamedSharding:
    """The same, of an array that is whole along `fsdp`."""
    axes = [part if isinstance(part, tuple) else (part,) for part in sharding.spec]
    kept = [tuple(axis for axis in part if axis not in (None, "fsdp")) or None for part in axes]
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))


def check_batch(mesh: jax.sharding.Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises ValueError unless the batch, in `accumulate` parts, splits evenly."""
    slices = _slices(mesh)
    if batch_size % (slices * accumulate):
        parts = f" times accumulate={accumulate}" if accumulate > 1 else ""
        raise ValueError(
            f"batch_size {batch_size} must be a multiple of the {slices} slices of data x fsdp of the mesh{parts}"
        )


def _slices(mesh: jax.sharding.Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in BATCH)


def host_share(mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """Which part of each batch is this process's, and of how many; processes whose devices lie along other axes have
    the same part. Raises ValueError where a process's slices of the batch do not lie side by side, or processes have
    different numbers of them."""
    places = [mesh.axis_names.index(axis) for axis in BATCH]
    slices = np.moveaxis(mesh.devices, places, (0, 1)).reshape(_slices(mesh), -1)
    owners = [{device.process_index for device in row} for row in slices]
    mine = [number for number, processes in enumerate(owners) if jax.process_index() in processes]
    size = len(mine)
    parts = [owners[start : start + max(size, 1)] for start in range(0, len(owners), max(size, 1))]
    # Nobody may be in two parts, and who is in one must have all of it.
    whole = all(processes == part[0] for part in parts for processes in part)
    apart = sum(len(part[0]) for part in parts) == len(set.union(*owners))
    if not (whole and apart and mine == list(range(mine[0], mine[0] + size)) and mine[0] % size == 0):
        raise ValueError(
            f"the mesh must hold the slices of the batch of each process side by side, and as many of each; they are "
            f"of {[sorted(processes) for processes in owners]}"
        )
    return mine[0] // size, len(parts)


def put_batch(mesh: jax.sharding.Mesh, batch: Any) -> Any:
    """A host's part of a batch as global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), batch)


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, str] | None:
    """What XLA is asked for beside its defaults on the mesh's platform: on TPUs, that products go on while parameters
    are gathered; None elsewhere. What it gives is in experiments/results/pod_plans.md."""
    return _OVERLAP if mesh.devices.flat[0].platform == "tpu" else None
