"""CLIP's encoder of prompts (Radford et al., 2103.00020), and its transformer. OpenCLIP (2212.07143) has the same.

A pre-norm transformer, whose layer norms LN have a scale and a shift:

    x = x + attention(LN1(x));   x = x + fc2(act(fc1(LN2(x))))

x starts as the embedding of the token plus that of its position, a token sees itself and those before it, and the
prompt's vector is that of its end token after the last LN, times a matrix.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.compute import PLAIN, Compute, Stack
from jdiff.models.encoders import ACTIVATIONS, IGNORED, check_activation, check_ids
from jdiff.models.transformer import merge_heads, split_heads
from jdiff.typing import Array

# Of both configs: what the network could be in transformers and is not here.
FIXED = {"is_decoder": False, "is_encoder_decoder": False, "add_cross_attention": False, "pruned_heads": {}}


class EncodedText(NamedTuple):
    """Of prompts of N tokens, in the dtype of the activations."""

    last_hidden_state: Array
    """[B, N, width], after the last layer norm."""
    hidden_states: Array
    """[layers + 1, B, N, width]: what each layer was given, and what the last one gave, before the last layer norm."""
    pooled: Array
    """[B, width], `last_hidden_state` at the end token."""
    text_embeds: Array | None
    """[B, projection_dim], None in the class without a projection."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What both configs say of their transformer. Raises ValueError for an impossible width or activation."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    compute: Compute

    def __post_init__(self):
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        check_activation("hidden_act", self.hidden_act)


@dataclass(frozen=True, kw_only=True)
class Text(Fields):
    """The fields of transformers' CLIPTextConfig, with its defaults."""

    weights: ClassVar[str] = "model"
    model_type: ClassVar[str] = "clip_text_model"
    inside: ClassVar[dict] = {"CLIPModel": "text_config"}
    fixed: ClassVar[dict] = FIXED
    ignored: ClassVar[frozenset] = IGNORED

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    """The end token. Where it is 2, which old configs say of any vocabulary, the greatest id of a prompt is its end."""
    compute: Compute = PLAIN

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.eos_token_id, int):
            raise ValueError(f"eos_token_id: {self.eos_token_id!r} is not one integer")


@dataclass(frozen=True, kw_only=True)
class CLIPText(Text):
    """CLIP's encoder of prompts. Raises ValueError for an impossible width or an unknown activation."""

    published: ClassVar[str] = "CLIPTextModel"

    def module(self, rngs: nnx.Rngs) -> "CLIPTextModule":
        """(ids [B, N], N up to max_position_embeddings) -> EncodedText without `text_embeds`."""
        return CLIPTextModule(self, project=False, rngs=rngs)


@dataclass(frozen=True, kw_only=True)
class CLIPTextWithProjection(Text):
    """CLIP's encoder of prompts with its projection. Raises ValueError as `CLIPText` does."""

    published: ClassVar[str] = "CLIPTextModelWithProjection"

    def module(self, rngs: nnx.Rngs) -> "CLIPTextModule":
        """(ids [B, N], N up to max_position_embeddings) -> EncodedText."""
        return CLIPTextModule(self, project=True, rngs=rngs)


class Attention(nnx.Module):
    """Attention of tokens [B, N, width] to themselves, `causal` or not, with biases."""

    def __init__(self, config: Fields, causal: bool, *, rngs: nnx.Rngs):
        width, dtype = config.hidden_size, config.compute.dtype
        self.heads, self.causal = config.num_attention_heads, causal
        self.q_proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(merge_heads(jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)))


class MLP(nnx.Module):
    """Two dense layers with an activation between."""

    def __init__(self, config: Fields, *, rngs: nnx.Rngs):
        width, wide, dtype = config.hidden_size, config.intermediate_size, config.compute.dtype
        self.activation = config.hidden_act
        self.fc1 = nnx.Linear(width, wide, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(wide, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class Layer(nnx.Module):
    """Attention and a two-layer network on [B, N, width], each after a layer norm."""

    def __init__(self, config: Fields, causal: bool, *, rngs: nnx.Rngs):
        self.self_attn = Attention(config, causal, rngs=rngs)
        self.layer_norm1 = norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.layer_norm2 = norm(config, rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


def norm(config: Fields, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        use_fast_variance=False,
        dtype=config.compute.dtype,
        rngs=rngs,
    )


def embed(count: int, width: int, compute: Compute, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(count, width, embedding_init=nnx.initializers.normal(0.02), dtype=compute.dtype, rngs=rngs)


class Encoder(nnx.Module):
    """x [B, N, width] -> what the last layer gives, and [layers + 1, B, N, width], that after what each was given."""

    def __init__(self, config: Fields, causal: bool, *, rngs: nnx.Rngs):
        make = lambda rngs: Layer(config, causal, rngs=rngs)
        self.layers = Stack(make, config.num_hidden_layers, config.compute, rngs=rngs)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        x, given = self.layers(x, collect=True)
        return x, jnp.concatenate([given, x[None]])


class TextEmbeddings(nnx.Module):
    """Ids [B, N] -> [B, N, width]. An id that is too great gives NaN, never another token."""

    def __init__(self, config: Text, *, rngs: nnx.Rngs):
        self.token_embedding = embed(config.vocab_size, config.hidden_size, config.compute, rngs)
        self.position_embedding = embed(config.max_position_embeddings, config.hidden_size, config.compute, rngs)

    def __call__(self, ids: Array) -> Array:
        return self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))


class TextTransformer(nnx.Module):
    """What both classes of encoders of prompts have."""

    def __init__(self, config: Text, *, rngs: nnx.Rngs):
        self.embeddings = TextEmbeddings(config, rngs=rngs)
        self.encoder = Encoder(config, True, rngs=rngs)
        self.final_layer_norm = norm(config, rngs)


class CLIPTextModule(nnx.Module):
    """The network that a `CLIPText` or a `CLIPTextWithProjection` describes."""

    def __init__(self, config: Text, *, project: bool, rngs: nnx.Rngs):
        self.config, self.project = config, project
        self.text_model = TextTransformer(config, rngs=rngs)
        if project:
            self.text_projection = nnx.Linear(
                config.hidden_size, config.projection_dim, use_bias=False, dtype=config.compute.dtype, rngs=rngs
            )

    def __call__(self, ids: Array) -> EncodedText:
        check_ids(ids, self.config.max_position_embeddings)
        last, hidden = self.text_model.encoder(self.text_model.embeddings(ids))
        last = self.normalized(last)
        end = self.config.eos_token_id
        place = jnp.argmax(ids if end == 2 else ids == end, axis=1)
        pooled = jnp.take_along_axis(last, place[:, None, None], axis=1)[:, 0]
        return EncodedText(last, hidden, pooled, self.text_projection(pooled) if self.project else None)

    def normalized(self, hidden: Array) -> Array:
        """The last layer norm of [..., width]: what Stable Diffusion applies to an earlier hidden state (clip skip)."""
        return self.text_model.final_layer_norm(hidden)
