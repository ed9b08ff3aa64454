"""Updates that are equal to the bit on 1, 2, 4 and 8 devices.

A compiler makes other sums of the same update for another number of devices, also of what one device does of it. So the
batch is cut into eight virtual shards, whatever the number of devices, and all arithmetic is in two programs for one
device that know of no other: the gradient of one shard, which each device computes for its own shards in turn, and the
update by the mean of all eight, which each device makes for itself. Between them gradients are moved, and nothing else.

Each device holds eight gradients and two states, and compiles both programs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

SHARDS = 8


def check_virtual(mesh: jax.sharding.Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises ValueError unless the mesh is of `data` alone, with 1, 2, 4 or 8 devices, and virtual shards split the
    batch evenly, in `accumulate` parts each."""
    axes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    if axes.keys() - {"data"} or SHARDS % mesh.shape["data"]:
        said = " x ".join(f"{axis}={size}" for axis, size in axes.items())
        raise ValueError(f"verify_determinism needs a mesh of data alone, 1, 2, 4 or 8 devices; got {said}")
    if batch_size % (SHARDS * accumulate):
        raise ValueError(
            f"verify_determinism needs a batch_size that is a multiple of {SHARDS} virtual shards times "
            f"accumulate={accumulate}; got {batch_size}"
        )


def on_virtual_shards(
    graded: Callable[[Any, Any, Any], Any], applied: Callable[[Any, Any], Any], mesh: jax.sharding.Mesh
) -> Callable[[Any, Any], Any]:
    """step(state, batch) -> result, where graded(state, rows, first) is of rows of the batch, the first of which has
    that place, and applied(state, mean) -> result takes the mean of what it gives. All but the batch is on all devices.
    """
    devices, here = list(mesh.devices.flat), jax.process_index()
    places = {device: number for number, device in enumerate(devices) if device.process_index == here}
    own = SHARDS // len(devices)
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    part = lambda rows, number: jax.tree.map(lambda leaf: leaf.reshape(own, -1, *leaf.shape[1:])[number], rows)
    cut = jax.jit(lambda rows: [part(rows, number) for number in range(own)])
    stacked = jax.jit(lambda *found: jax.tree.map(lambda *leaves: jnp.stack(leaves), *found))
    everywhere = jax.jit(lambda found: found, out_shardings=whole)
    one = jax.jit(graded)
    last = jax.jit(lambda state, found: applied(state, jax.tree.map(lambda leaf: leaf.mean(0), found)))

    def step(state: Any, batch: Any) -> Any:
        states = {device: _held(state, device) for device in places}
        shards = {device: cut(_held(batch, device)) for device in places}
        found = {device: [] for device in places}
        for number in range(own):
            for device, place in places.items():  # innermost, so that all devices have work
                rows = shards[device][number]
                first = (place * own + number) * len(jax.tree.leaves(rows)[0])
                found[device].append(one(states[device], rows, np.int32(first)))
        gathered = everywhere(_joined([stacked(*found[device]) for device in places], split))
        return _joined([last(states[device], _held(gathered, device)) for device in places], whole)

    return step


def _held(tree: Any, device: Any) -> Any:
    """What a device holds of each array."""
    part = lambda leaf: next(shard.data for shard in leaf.addressable_shards if shard.device == device)
    return jax.tree.map(part, tree)


def _joined(parts: list[Any], sharding: NamedSharding) -> Any:
    """Arrays of what each device of this process holds."""

    def join(*leaves: jax.Array) -> jax.Array:
        count = sharding.mesh.size if sharding.spec else 1
        shape = (count * leaves[0].shape[0], *leaves[0].shape[1:]) if sharding.spec else leaves[0].shape
        return jax.make_array_from_single_device_arrays(shape, sharding, list(leaves))

    return jax.tree.map(join, *parts)
