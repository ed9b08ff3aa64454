"""Layers of transformers: attention over tokens, two-layer networks, layer norm without parameters.

Attention (1706.03762): softmax(q k^T / sqrt(width of a head)) v, by `jax.nn.dot_product_attention`, which takes the
platform's own kernel where it has one. Gated networks are those of 2002.05202.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.compute import Compute
from jdiff.typing import Array


class Attention(nnx.Module):
    """Attention of tokens [B, N, width] to themselves, or to `context` [B, M, context_width]."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        compute: Compute,
        *,
        context_width: int | None = None,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        inner, source = heads * head_width, width if context_width is None else context_width
        self.heads = heads
        self.to_q = nnx.Linear(width, inner, use_bias=bias, dtype=compute.dtype, rngs=rngs)
        self.to_k = nnx.Linear(source, inner, use_bias=bias, dtype=compute.dtype, rngs=rngs)
        self.to_v = nnx.Linear(source, inner, use_bias=bias, dtype=compute.dtype, rngs=rngs)
        self.to_out = nnx.Linear(inner, width, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Array, context: Array | None = None) -> Array:
        source = x if context is None else context
        q, k, v = (split_heads(part, self.heads) for part in (self.to_q(x), self.to_k(source), self.to_v(source)))
        return self.to_out(merge_heads(jax.nn.dot_product_attention(q, k, v)))


def split_heads(x: Array, heads: int) -> Array:
    """[B, N, width] -> [B, N, heads, width / heads]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> Array:
    """The inverse of `split_heads`."""
    return x.reshape(*x.shape[:-2], -1)


ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu-approximate": jax.nn.gelu,
    "geglu": lambda x: _gated(x),
}


def _gated(x: Array) -> Array:
    value, gate = jnp.split(x, 2, axis=-1)
    return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """[..., width] -> [..., width] through four times the width; `activation` is one of ACTIVATIONS."""

    def __init__(self, width: int, activation: str, compute: Compute, *, rngs: nnx.Rngs):
        self.activation, inner = activation, 4 * width
        wide = 2 * inner if activation == "geglu" else inner
        self.widen = nnx.Linear(width, wide, dtype=compute.dtype, rngs=rngs)
        self.narrow = nnx.Linear(inner, width, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.narrow(ACTIVATIONS[self.activation](self.widen(x)))


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """Zero mean and unit variance over the last axis, without parameters; float32 inside."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)
