"""Keys by name and by identity: what is drawn depends on the seed, the purpose, the step and the example, never on the
batch, the device or the host that draws it."""

import zlib

import jax

from jdiff.typing import Array, Key


def named(key: Key, name: str) -> Key:
    """A key for one purpose. Works on a scalar key and on an array of keys."""
    word = zlib.crc32(name.encode())
    return jax.vmap(lambda k: jax.random.fold_in(k, word))(key) if key.ndim else jax.random.fold_in(key, word)


def numbered(key: Key, number: int | Array) -> Key:
    """The key of one step: `number` folded into a scalar key, or into each of an array of keys."""
    return jax.vmap(lambda k: jax.random.fold_in(k, number))(key) if key.ndim else jax.random.fold_in(key, number)


def per_example(key: Key, index: Array) -> Key:
    """Keys [B] of the examples or samples with the global indices `index` [B] (int32)."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def normal(keys: Key, like: Array) -> Array:
    """Standard normal noise in the shape [B, ...] and dtype of `like`, row b from keys[b] alone."""
    return jax.vmap(lambda k: jax.random.normal(k, like.shape[1:], like.dtype))(keys)
