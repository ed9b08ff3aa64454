"""Layers of transformers: attention over tokens, two-layer networks, layer norm without parameters.

Attention (1706.03762): softmax(q k^T / sqrt(width of a head)) v, or another of `attention.py`. Queries and keys may be
RMS-normalized over a head (2302.05442) and turned by their positions (2104.09864). Gated networks are those of
2002.05202.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.models.attention import FULL, Mixing
from jdiff.models.compute import Compute
from jdiff.models.embeddings import rotated
from jdiff.models.products import Linear
from jdiff.typing import Array


class Attention(nnx.Module):
    """Attention of tokens [B, ..., width] to themselves, or to `context` [B, M, context_width].

    `mixing` says which tokens attend to which; all but full and linear attention want a grid [B, H, W, width].
    `angles` [..., head_width / 2] are those of `rotated`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        compute: Compute,
        *,
        context_width: int | None = None,
        bias: bool = False,
        qk_norm: bool = False,
        mixing: Mixing = FULL,
        rngs: nnx.Rngs,
    ):
        inner, source = heads * head_width, width if context_width is None else context_width
        norm = lambda: nnx.RMSNorm(head_width, epsilon=1e-6, dtype=compute.dtype, rngs=rngs)
        self.heads, self.mixing = heads, mixing
        self.to_q = Linear(width, inner, use_bias=bias, dtype=compute.dtype, rngs=rngs)
        self.to_k = Linear(source, inner, use_bias=bias, dtype=compute.dtype, rngs=rngs)
        self.to_v = Linear(source, inner, use_bias=bias, dtype=compute.dtype, rngs=rngs)
        self.norm_q, self.norm_k = (norm(), norm()) if qk_norm else (None, None)
        self.to_out = Linear(inner, width, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Array, context: Array | None = None, *, angles: np.ndarray | None = None) -> Array:
        source = x if context is None else context
        q, k, v = (split_heads(part, self.heads) for part in (self.to_q(x), self.to_k(source), self.to_v(source)))
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        if angles is not None:
            q, k = rotated(q, angles), rotated(k, angles)
        return self.to_out(merge_heads(self.mixing(q, k, v)))


def split_heads(x: Array, heads: int) -> Array:
    """[B, N, width] -> [B, N, heads, width / heads]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> Array:
    """The inverse of `split_heads`."""
    return x.reshape(*x.shape[:-2], -1)


ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu-approximate": jax.nn.gelu,
    "geglu": lambda x: _gated(x, lambda gate: jax.nn.gelu(gate, approximate=False)),
    "swiglu": lambda x: _gated(x, jax.nn.silu),
}


def _gated(x: Array, activation: Callable[[Array], Array]) -> Array:
    value, gate = jnp.split(x, 2, axis=-1)
    return value * activation(gate)


class FeedForward(nnx.Module):
    """[..., width] -> [..., width] through four times the width, or, with "swiglu", through as much as makes as many
    parameters, two thirds of it; `activation` is one of ACTIVATIONS."""

    def __init__(self, width: int, activation: str, compute: Compute, *, rngs: nnx.Rngs):
        self.activation, inner = activation, 8 * width // 3 if activation == "swiglu" else 4 * width
        wide = 2 * inner if activation in ("geglu", "swiglu") else inner
        self.widen = Linear(width, wide, dtype=compute.dtype, rngs=rngs)
        self.narrow = Linear(inner, width, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.narrow(ACTIVATIONS[self.activation](self.widen(x)))


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """Zero mean and unit variance over the last axis, without parameters; float32 inside."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)
