"""A number that says whether arrays are what they were, the same on every mesh."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jdiff.typing import Array


def digest(tree: Any) -> int:
    """32 bits of all arrays: others for certain if one word of one array differs, and but for 1 in 2^32 if more do.

    A sum of whole numbers, of each word and its place mixed up, so that it does not depend on how arrays are split.
    Every device sums its own part: nothing is sent between devices, and a sum of each process to the others.
    """
    own = np.uint32(sum(device_digests(tree, copies=False).values()) % 2**32)
    return int(np.sum(multihost_utils.process_allgather(own), dtype=np.uint32))


def device_digests(tree: Any, *, copies: bool = True) -> dict[Any, int]:
    """32 bits of what each device of this process holds; of what several hold, without `copies` the first alone counts
    it. Devices that hold the same have the same."""
    parts: dict[Any, list[Array]] = {}
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        for shard in leaf.addressable_shards:
            if copies or shard.replica_id == 0:
                start = np.array([part.start or 0 for part in shard.index], np.uint32)
                found = _digest(shard.data, np.uint32(number), start, shape=leaf.shape)
                parts.setdefault(shard.device, []).append(found)
    return {device: sum(int(part) for part in jax.device_get(found)) % 2**32 for device, found in parts.items()}


@partial(jax.jit, static_argnames="shape")
def _digest(part: Array, number: Array, start: Array, *, shape: tuple[int, ...]) -> Array:
    """Of the part that begins at `start` of an array of `shape`."""
    words, place = _words(part), jnp.uint32(0)
    for axis, length in enumerate(shape):
        place = place * jnp.uint32(length) + start[axis] + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return _mixed(words + _mixed(place + _mixed(number))).sum(dtype=jnp.uint32)


def _mixed(word: Array) -> Array:
    """Another number for each number, all bits on all bits (MurmurHash3's last step; Appleby, 2011)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def _words(leaf: Array) -> Array:
    """The bits of each number as uint32."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
