"""CLIP's encoder of pictures (Radford et al., 2103.00020): the transformer of `clip.py`, in which every token sees all.

x starts as a vector of the whole picture and a linear image of each patch, plus the embedding of the position, then a
layer norm. The picture's vector is the first token's after a layer norm, times a matrix.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx

from jdiff.models.clip import FIXED, Encoder, Fields, embed, norm
from jdiff.models.compute import PLAIN, Compute
from jdiff.models.encoders import IGNORED
from jdiff.typing import Array


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


@dataclass(frozen=True, kw_only=True)
class CLIPVisionWithProjection(Fields):
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
        super().__post_init__()
        for field in ("image_size", "patch_size"):
            if not isinstance(getattr(self, field), int):
                raise ValueError(
                    f"{field}: {getattr(self, field)!r} is not an integer; pictures and patches are square"
                )

    def module(self, rngs: nnx.Rngs) -> "CLIPVisionModule":
        """(pixels [B, image_size, image_size, num_channels], normalized as the encoder wants) -> EncodedImage."""
        return CLIPVisionModule(self, rngs=rngs)


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
        self.position_embedding = embed(count, width, config.compute, rngs)

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
        self.pre_layrnorm = norm(config, rngs)  # sic: its published name
        self.encoder = Encoder(config, False, rngs=rngs)
        self.post_layernorm = norm(config, rngs)

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
