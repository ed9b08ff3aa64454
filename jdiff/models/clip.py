"""CLIP's encoders of prompts and of pictures (Radford et al., 2103.00020; OpenCLIP, 2212.07143, is the same network).

Both are pre-norm transformers, with a layer norm LN that has a scale and a shift:

    x = x + attention(LN1(x));   x = x + fc2(act(fc1(LN2(x))))

- Prompts: x starts as the embedding of the token plus that of its position, a token sees itself and those before it,
  and the prompt's vector is that of its end token after the last LN, times a matrix.
- Pictures: x starts as a vector of the whole picture and a linear image of each patch, plus the embedding of the
  position, then an LN; every token sees all. The picture's vector is the first token's after an LN, times a matrix.
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


class EncodedImage(NamedTuple):
    """Of pictures of N patches, in the dtype of the activations."""

    last_hidden_state: Array
    """[B, 1 + N, width], before the last layer norm."""
    hidden_states: Array
    """[layers + 1, B, 1 + N, width]: what each layer was given, and what the last one gave."""
    pooled: Array
    """[B, width], the first token after the last layer norm."""
    image_embeds: Array
    """[B, projection_dim]."""


def _check(config: "Text | CLIPVisionWithProjection") -> None:
    if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size: {config.hidden_size} is not a multiple of num_attention_heads={config.num_attention_heads}"
        )
    check_activation("hidden_act", config.hidden_act)


@dataclass(frozen=True, kw_only=True)
class Text:
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
    """The end token. Where it is 2, which old configs say of every vocabulary, the greatest id of a prompt is its end."""
    compute: Compute = PLAIN

    def __post_init__(self):
        _check(self)
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


@dataclass(frozen=True, kw_only=True)
class CLIPVisionWithProjection:
    """CLIP's encoder of pictures with its projection: the fields of transformers' CLIPVisionConfig, with its defaults.

    Raises ValueError for an impossible width, a size that is no integer, or an unknown activation.
    """

    published: ClassVar[str] = "CLIPVisionModelWithProjection"
    weights: ClassVar[str] = "model"
    model_type: ClassVar[str] = "clip_vision_model"
    inside: ClassVar[dict] = {"CLIPModel": "vision_config"}
    fixed: ClassVar[dict] = FIXED
    ignored: ClassVar[frozenset] = IGNORED | {"eos_token_id"}

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    compute: Compute = PLAIN

    def __post_init__(self):
        _check(self)
        for field in ("image_size", "patch_size"):
            if not isinstance(getattr(self, field), int):
                raise ValueError(
                    f"{field}: {getattr(self, field)!r} is not an integer; pictures and patches are square"
                )

    def module(self, rngs: nnx.Rngs) -> "CLIPVisionModule":
        """(pixels [B, image_size, image_size, num_channels], normalized as the encoder wants) -> EncodedImage."""
        return CLIPVisionModule(self, rngs=rngs)


class Attention(nnx.Module):
    """Attention of tokens [B, N, width] to themselves, `causal` or not, with biases."""

    def __init__(self, config: Text | CLIPVisionWithProjection, causal: bool, *, rngs: nnx.Rngs):
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

    def __init__(self, config: Text | CLIPVisionWithProjection, *, rngs: nnx.Rngs):
        width, wide, dtype = config.hidden_size, config.intermediate_size, config.compute.dtype
        self.activation = config.hidden_act
        self.fc1 = nnx.Linear(width, wide, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(wide, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class Layer(nnx.Module):
    """Attention and a two-layer network on [B, N, width], each after a layer norm."""

    def __init__(self, config: Text | CLIPVisionWithProjection, causal: bool, *, rngs: nnx.Rngs):
        self.self_attn = Attention(config, causal, rngs=rngs)
        self.layer_norm1 = _norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.layer_norm2 = _norm(config, rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


def _norm(config: Text | CLIPVisionWithProjection, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        use_fast_variance=False,
        dtype=config.compute.dtype,
        rngs=rngs,
    )


def _embed(count: int, width: int, compute: Compute, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(count, width, embedding_init=nnx.initializers.normal(0.02), dtype=compute.dtype, rngs=rngs)


class Encoder(nnx.Module):
    """x [B, N, width] -> what the last layer gives, and [layers + 1, B, N, width], that after what each was given."""

    def __init__(self, config: Text | CLIPVisionWithProjection, causal: bool, *, rngs: nnx.Rngs):
        make = lambda rngs: Layer(config, causal, rngs=rngs)
        self.layers = Stack(make, config.num_hidden_layers, config.compute, rngs=rngs)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        x, given = self.layers(x, collect=True)
        return x, jnp.concatenate([given, x[None]])


class TextEmbeddings(nnx.Module):
    """Ids [B, N] -> [B, N, width]. An id that is too great gives NaN, never another token."""

    def __init__(self, config: Text, *, rngs: nnx.Rngs):
        self.token_embedding = _embed(config.vocab_size, config.hidden_size, config.compute, rngs)
        self.position_embedding = _embed(config.max_position_embeddings, config.hidden_size, config.compute, rngs)

    def __call__(self, ids: Array) -> Array:
        return self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))


class TextTransformer(nnx.Module):
    """What both classes of encoders of prompts have."""

    def __init__(self, config: Text, *, rngs: nnx.Rngs):
        self.embeddings = TextEmbeddings(config, rngs=rngs)
        self.encoder = Encoder(config, True, rngs=rngs)
        self.final_layer_norm = _norm(config, rngs)


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


class VisionEmbeddings(nnx.Module):
    """Pixels [B, H, W, C] -> [B, 1 + N, width]."""

    def __init__(self, config: CLIPVisionWithProjection, *, rngs: nnx.Rngs):
        width, patch, dtype = config.hidden_size, config.patch_size, config.compute.dtype
        self.class_embedding = nnx.Param(nnx.initializers.normal(0.02)(rngs(), (width,)))
        self.patch_embedding = nnx.Conv(
            config.num_channels,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        count = (config.image_size // patch) ** 2 + 1
        self.position_embedding = _embed(count, width, config.compute, rngs)

    def __call__(self, pixels: Array) -> Array:
        patches = self.patch_embedding(pixels)
        b, h, w, width = patches.shape
        first = jnp.broadcast_to(self.class_embedding[...].astype(patches.dtype), (b, 1, width))
        x = jnp.concatenate([first, patches.reshape(b, h * w, width)], axis=1)
        return x + self.position_embedding(jnp.arange(x.shape[1]))


class VisionTransformer(nnx.Module):
    """Pixels [B, H, W, C] -> what the last layer gives, all hidden states, and the first token after the last norm."""

    def __init__(self, config: CLIPVisionWithProjection, *, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(config, rngs=rngs)
        self.pre_layrnorm = _norm(config, rngs)  # sic: its published name
        self.encoder = Encoder(config, False, rngs=rngs)
        self.post_layernorm = _norm(config, rngs)

    def __call__(self, pixels: Array) -> tuple[Array, Array, Array]:
        last, hidden = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return last, hidden, self.post_layernorm(last[:, 0])


class CLIPVisionModule(nnx.Module):
    """The network that a `CLIPVisionWithProjection` describes."""

    def __init__(self, config: CLIPVisionWithProjection, *, rngs: nnx.Rngs):
        self.config = config
        self.vision_model = VisionTransformer(config, rngs=rngs)
        self.visual_projection = nnx.Linear(
            config.hidden_size, config.projection_dim, use_bias=False, dtype=config.compute.dtype, rngs=rngs
        )

    def __call__(self, pixels: Array) -> EncodedImage:
        wanted = (self.config.image_size, self.config.image_size, self.config.num_channels)
        if pixels.ndim != 4 or pixels.shape[1:] != wanted:
            raise ValueError(f"pixels: {pixels.shape} instead of [B, {wanted[0]}, {wanted[1]}, {wanted[2]}]")
        last, hidden, pooled = self.vision_model(pixels)
        return EncodedImage(last, hidden, pooled, self.visual_projection(pooled))
