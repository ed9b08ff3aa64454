"""A number that says whether arrays are what they were, the same on every mesh."""

from typing import Any

import jax
import jax.numpy as jnp

from jdiff.typing import Array


def digest(tree: Any) -> int:
    """32 bits of all arrays: others for certain if one word of one array differs, and but for 1 in 2^32 if more do.

    A sum of whole numbers, of each word and its place mixed up, so that it does not depend on how arrays are split.
    """
    parts = [_digest(leaf, number) for number, leaf in enumerate(jax.tree.leaves(tree))]
    return sum(int(part) for part in jax.device_get(parts)) % 2**32


@jax.jit
def _digest(leaf: Array, number: Array) -> Array:
    words, place = _words(leaf), jnp.uint32(0)
    for axis, length in enumerate(words.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return _mixed(words + _mixed(place + _mixed(number.astype(jnp.uint32)))).sum(dtype=jnp.uint32)


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
