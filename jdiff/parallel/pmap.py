"""Data parallelism by `jax.pmap`, for those who ask for it: an update that averages over its axis by itself."""

from collections.abc import Callable
from typing import Any

import jax

from jdiff.parallel.mesh import BATCH


def mapped(update: Callable[[Any, Any], tuple[Any, Any]], mesh: jax.sharding.Mesh) -> Callable[[Any, Any], Any]:
    """step(state, batch) -> (state, metrics), with the state on all devices and the batch [B, ...] split over them,
    where `update` takes the state and one device's part of the batch and has an axis named `data`."""
    count = mesh.shape["data"]
    each = jax.pmap(
        update, "data", in_axes=(None, 0), out_axes=(None, None), devices=list(mesh.devices.flat), donate_argnums=0
    )
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(BATCH))
    cut = jax.jit(
        lambda batch: jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), batch), out_shardings=split
    )
    return lambda state, batch: each(state, cut(batch))
