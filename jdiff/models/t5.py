"""T5's encoder of prompts (Raffel et al., 1910.10683; version 1.1 has the gated network of 2002.05202).

A pre-norm transformer without biases, RMS norm with a scale, and attention that is not scaled:

    x = x + attention(RMS(x));   x = x + wo(act(wi(RMS(x)))),  or with a gate  wo(act(wi_0(.)) wi_1(.))

Attention is softmax(q k^T + b) v, where b of a head depends on the distance between two tokens alone. Distances share
numbers in buckets: half of the buckets for each direction, half of those for one distance each, and the others growing
geometrically up to `relative_attention_max_distance`. One table of b serves all layers.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.models.compute import PLAIN, Compute, Stack
from jdiff.models.encoders import ACTIVATIONS, IGNORED, check_activation, check_ids
from jdiff.models.transformer import merge_heads, split_heads
from jdiff.typing import Array


@dataclass(frozen=True, kw_only=True)
class T5Encoder:
    """T5's encoder, with the fields of transformers' T5Config and its defaults.

    Raises ValueError for an unknown `feed_forward_proj`, or buckets that leave none for a distance.
    """

    published: ClassVar[str] = "T5EncoderModel"
    weights: ClassVar[str] = "model"
    model_type: ClassVar[str] = "t5"
    fixed: ClassVar[dict] = {"is_decoder": False}
    ignored: ClassVar[frozenset] = IGNORED | {"eos_token_id", "is_encoder_decoder", "num_decoder_layers"}
    derived: ClassVar[tuple] = ("dense_act_fn", "is_gated_act")

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    """Width of a head; heads times this need not be `d_model`."""
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    """An activation, or "gated-" and an activation; "gated-gelu" is the tanh approximation."""
    compute: Compute = PLAIN

    def __post_init__(self):
        check_activation("feed_forward_proj", self.dense_act_fn)
        exact = self.relative_attention_num_buckets // 4
        if exact < 1 or self.relative_attention_max_distance <= exact:
            raise ValueError(
                f"relative_attention_num_buckets: {self.relative_attention_num_buckets} is less than 4, or a quarter "
                f"of it is not less than relative_attention_max_distance={self.relative_attention_max_distance}"
            )

    @property
    def is_gated_act(self) -> bool:
        """Whether the two-layer network has a gate."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def dense_act_fn(self) -> str:
        """The activation."""
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.removeprefix("gated-")

    def module(self, rngs: nnx.Rngs) -> "T5EncoderModule":
        """(ids [B, N], mask [B, N] or None) -> [B, N, d_model] in the dtype of the activations, which is not float16:
        there they overflow.

        Tokens are seen where the mask is not 0; without one, all are."""
        return T5EncoderModule(replace(self, compute=self.compute.upcast), rngs=rngs)


def buckets(count: int, config: T5Encoder) -> np.ndarray:
    """[count, count]: the bucket of the token of the column as seen from that of the row."""
    half = config.relative_attention_num_buckets // 2
    exact = half // 2
    distance = np.arange(count)[None] - np.arange(count)[:, None]
    far = np.maximum(np.abs(distance), exact)
    steps = np.log(far / exact) / math.log(config.relative_attention_max_distance / exact) * (half - exact)
    far = np.minimum(exact + steps.astype(np.int64), half - 1)
    return half * (distance > 0) + np.where(np.abs(distance) < exact, np.abs(distance), far)


class SelfAttention(nnx.Module):
    """softmax(q k^T + bias) v over [B, N, width], where `mask` [B, 1, 1, N] lets it."""

    def __init__(self, config: T5Encoder, *, rngs: nnx.Rngs):
        width, inner, self.heads = config.d_model, config.num_heads * config.d_kv, config.num_heads
        plain = {"use_bias": False, "dtype": config.compute.dtype, "rngs": rngs}
        self.q = nnx.Linear(width, inner, **plain)
        self.k = nnx.Linear(width, inner, **plain)
        self.v = nnx.Linear(width, inner, **plain)
        self.o = nnx.Linear(inner, width, **plain)

    def __call__(self, x: Array, bias: Array, mask: Array | None) -> Array:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.q, self.k, self.v))
        return self.o(merge_heads(jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=1.0)))


class FeedForward(nnx.Module):
    """[..., width] -> [..., width], with a gate or without."""

    def __init__(self, config: T5Encoder, *, rngs: nnx.Rngs):
        width, inner = config.d_model, config.d_ff
        plain = {"use_bias": False, "dtype": config.compute.dtype, "rngs": rngs}
        self.activation, self.gated = config.dense_act_fn, config.is_gated_act
        if self.gated:
            self.wi_0 = nnx.Linear(width, inner, **plain)
            self.wi_1 = nnx.Linear(width, inner, **plain)
        else:
            self.wi = nnx.Linear(width, inner, **plain)
        self.wo = nnx.Linear(inner, width, **plain)

    def __call__(self, x: Array) -> Array:
        act = ACTIVATIONS[self.activation]
        return self.wo(act(self.wi_0(x)) * self.wi_1(x) if self.gated else act(self.wi(x)))


def _norm(config: T5Encoder, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.d_model, epsilon=config.layer_norm_epsilon, dtype=config.compute.dtype, rngs=rngs)


class AttentionLayer(nnx.Module):
    """Attention after a norm."""

    def __init__(self, config: T5Encoder, *, rngs: nnx.Rngs):
        self.SelfAttention = SelfAttention(config, rngs=rngs)
        self.layer_norm = _norm(config, rngs)

    def __call__(self, x: Array, bias: Array, mask: Array | None) -> Array:
        return x + self.SelfAttention(self.layer_norm(x), bias, mask)


class FeedForwardLayer(nnx.Module):
    """The two-layer network after a norm."""

    def __init__(self, config: T5Encoder, *, rngs: nnx.Rngs):
        self.DenseReluDense = FeedForward(config, rngs=rngs)
        self.layer_norm = _norm(config, rngs)

    def __call__(self, x: Array) -> Array:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nnx.Module):
    """Both on [B, N, width]."""

    def __init__(self, config: T5Encoder, *, rngs: nnx.Rngs):
        self.attention = AttentionLayer(config, rngs=rngs)
        self.feed_forward = FeedForwardLayer(config, rngs=rngs)

    def __call__(self, x: Array, bias: Array, mask: Array | None) -> Array:
        return self.feed_forward(self.attention(x, bias, mask))


class Encoder(nnx.Module):
    """Blocks, the table of biases that they share, and a norm."""

    def __init__(self, config: T5Encoder, *, rngs: nnx.Rngs):
        self.config = config
        self.relative_attention_bias = nnx.Embed(
            config.relative_attention_num_buckets,
            config.num_heads,
            embedding_init=nnx.initializers.normal(0.02),
            dtype=config.compute.dtype,
            rngs=rngs,
        )
        self.block = Stack(lambda rngs: Block(config, rngs=rngs), config.num_layers, config.compute, rngs=rngs)
        self.final_layer_norm = _norm(config, rngs)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        bias = self.relative_attention_bias(jnp.asarray(buckets(x.shape[1], self.config))).transpose(2, 0, 1)[None]
        return self.final_layer_norm(self.block(x, bias, mask))


class T5EncoderModule(nnx.Module):
    """The network that a `T5Encoder` describes."""

    def __init__(self, config: T5Encoder, *, rngs: nnx.Rngs):
        self.shared = nnx.Embed(
            config.vocab_size,
            config.d_model,
            embedding_init=nnx.initializers.normal(1.0),
            dtype=config.compute.dtype,
            rngs=rngs,
        )
        self.encoder = Encoder(config, rngs=rngs)

    def __call__(self, ids: Array, mask: Array | None = None) -> Array:
        check_ids(ids)
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"mask: {mask.shape} instead of the shape of ids, {ids.shape}")
        seen = None if mask is None else (mask != 0)[:, None, None]
        return self.encoder(self.shared(ids), seen)
