"""The text-conditional U-Net of Stable Diffusion 1, 2 and XL (Rombach et al., 2112.10752; Podell et al., 2307.01952).

The vector of the timestep is added to that of the label, and in XL to that of a pooled text embedding and six numbers
(original height and width, top and left of the crop, target height and width), each as sinusoids.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.compute import PLAIN, Compute
from jdiff.models.convolution import GroupNorm, conv
from jdiff.models.embeddings import TimestepEmbedding, timesteps
from jdiff.models.unet_blocks import Down, MakeAttention, Middle, Parts, PixelTransformer, Up
from jdiff.typing import Array, Cond

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclass(frozen=True, kw_only=True)
class UNet2DCondition:
    """A U-Net that reads text, with the fields of diffusers' UNet2DConditionModel; the defaults are Stable Diffusion 1.

    Images are [B, H, W, in_channels], H and W multiples of `divisor`. What is a tuple or one value is for each level,
    from the highest resolution to the lowest. Raises ValueError for levels that do not fit together.
    """

    published: ClassVar[str] = "UNet2DConditionModel"
    fixed: ClassVar[dict] = {
        "center_input_sample": False,
        "only_cross_attention": False,
        "mid_block_scale_factor": 1,
        "dropout": 0.0,
        "act_fn": "silu",
        "reverse_transformer_layers_per_block": None,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "num_attention_heads": None,
        "dual_cross_attention": False,
        "class_embed_type": None,
        "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1.0,
        "time_embedding_type": "positional",
        "time_embedding_act_fn": None,
        "timestep_post_act": None,
        "time_cond_proj_dim": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "attention_type": "default",
        "class_embeddings_concat": False,
        "mid_block_only_cross_attention": None,
        "cross_attention_norm": None,
        "addition_embed_type_num_heads": 64,
    }

    # Softmax is in float32 anyway.
    ignored: ClassVar[frozenset] = frozenset({"upcast_attention"})

    sample_size: int | tuple[int, int] | None = None
    """Edge of the images that it was trained on; changes nothing."""
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    """Width of the text's embeddings."""
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    """The number of heads: an old mistake that the name keeps."""
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    """"text_time" in Stable Diffusion XL."""
    addition_time_embed_dim: int | None = None
    num_class_embeds: int | None = None
    resnet_time_scale_shift: str = "default"
    time_embedding_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    compute: Compute = PLAIN

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name, known in (("down_block_types", DOWN), ("up_block_types", UP)):
            kinds = getattr(self, name)
            if len(kinds) != levels or any(kind not in known for kind in kinds):
                raise ValueError(f"{name}: {kinds} must be {levels} of {', '.join(known)}")
        for name in PER_LEVEL:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(f"{name}: {value} must be one value or {levels}")
        if self.mid_block_type not in (None, "UNetMidBlock2DCrossAttn"):
            raise ValueError(f"mid_block_type: {self.mid_block_type!r} is not UNetMidBlock2DCrossAttn or None")
        if self.addition_embed_type not in (None, "text_time"):
            raise ValueError(f"addition_embed_type: {self.addition_embed_type!r} is not text_time or None")
        for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if self.addition_embed_type is not None and getattr(self, name) is None:
                raise ValueError(f"{name}: None, but addition_embed_type={self.addition_embed_type!r} needs it")
        if self.resnet_time_scale_shift not in ("default", "scale_shift"):
            raise ValueError(f"resnet_time_scale_shift: {self.resnet_time_scale_shift!r} is not default or scale_shift")

    @property
    def divisor(self) -> int:
        """What the edges of the images must be multiples of."""
        return 2 ** (len(self.block_out_channels) - 1)

    def at(self, name: str, level: int) -> int:
        """A field that may be one value or one for each level."""
        value = getattr(self, name)
        return value[level] if isinstance(value, tuple) else value

    def conditions(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """What it takes of an example besides its class, where its caption is `tokens` long: shapes by name. Raises
        ValueError where its levels want texts of different widths."""
        widths = {self.at("cross_attention_dim", level) for level in range(len(self.block_out_channels))}
        if len(widths) > 1:
            raise ValueError(f"cross_attention_dim: {self.cross_attention_dim} wants several texts; training has one")
        shapes: dict[str, tuple[int, ...]] = {"text": (tokens, *widths)}
        if self.addition_embed_type == "text_time":
            pooled = (self.projection_class_embeddings_input_dim or 0) - 6 * (self.addition_time_embed_dim or 0)
            shapes |= {"pooled": (pooled,), "time_ids": (6,)}
        return shapes

    def for_images(
        self, *, size: int, channels: int, out_channels: int, num_classes: int
    ) -> Callable[[nnx.Rngs], nnx.Module]:
        """What makes this network for other images and classes."""
        fields = {"in_channels": channels, "out_channels": out_channels}
        return dataclasses.replace(self, sample_size=size, num_class_embeds=num_classes or None, **fields).module

    def module(self, rngs: nnx.Rngs) -> "UNet2DConditionModule":
        """(x [B, H, W, in_channels], timestep [B], cond) -> [B, H, W, out_channels].

        `cond` holds "text" [B, N, cross_attention_dim]; with classes "label" [B]; with "text_time" also "pooled"
        [B, P] and "time_ids" [B, 6].
        """
        return UNet2DConditionModule(self, rngs=rngs)


PER_LEVEL = ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim")


class UNet2DConditionModule(nnx.Module):
    """The network that a `UNet2DCondition` describes."""

    def __init__(self, config: UNet2DCondition, *, rngs: nnx.Rngs):
        widths, compute, self.config = config.block_out_channels, config.compute, config
        levels, embedding = len(widths), config.time_embedding_dim or 4 * widths[0]
        scale_shift = config.resnet_time_scale_shift == "scale_shift"
        parts = Parts(embedding, config.norm_num_groups, config.norm_eps, scale_shift, compute)

        def attention(level: int) -> MakeAttention:
            heads, depth = config.at("attention_head_dim", level), config.at("transformer_layers_per_block", level)
            return lambda channels, rngs: PixelTransformer(
                channels,
                heads,
                depth,
                config.at("cross_attention_dim", level),
                compute,
                groups=config.norm_num_groups,
                linear=config.use_linear_projection,
                rngs=rngs,
            )

        self.conv_in = conv(config.in_channels, widths[0], compute, rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], embedding, compute, rngs=rngs)
        classes, added = config.num_class_embeds, config.projection_class_embeddings_input_dim
        self.class_embedding = None if classes is None else nnx.Embed(classes, embedding, rngs=rngs)
        added = added if config.addition_embed_type else None
        self.add_embedding = None if added is None else TimestepEmbedding(added, embedding, compute, rngs=rngs)
        skips = [widths[0]]
        down, arriving = [], widths[0]
        for level, (kind, width) in enumerate(zip(config.down_block_types, widths, strict=True)):
            depth, last = config.at("layers_per_block", level), level == levels - 1
            make = attention(level) if kind == "CrossAttnDownBlock2D" else None
            down.append(
                Down(
                    parts,
                    arriving,
                    width,
                    depth,
                    attention=make,
                    resample="" if last else "conv",
                    padding=config.downsample_padding,
                    rngs=rngs,
                )
            )
            skips += [width] * (depth + (not last))
            arriving = width
        self.down_blocks = nnx.List(down)
        middle = lambda: Middle(parts, arriving, attention=attention(levels - 1), rngs=rngs)
        self.mid_block = None if config.mid_block_type is None else middle()
        up = []
        for step, kind in enumerate(config.up_block_types):
            level = levels - 1 - step
            count = config.at("layers_per_block", level) + 1
            taken = [skips.pop() for _ in range(count)]
            make = attention(level) if kind == "CrossAttnUpBlock2D" else None
            resample = "conv" if level else ""
            up.append(Up(parts, arriving, taken, widths[level], attention=make, resample=resample, rngs=rngs))
            arriving = widths[level]
        self.up_blocks = nnx.List(up)
        self.conv_norm_out = GroupNorm(widths[0], config.norm_num_groups, config.norm_eps)
        self.conv_out = conv(widths[0], config.out_channels, compute, rngs=rngs)

    def __call__(self, x: Array, timestep: Array, cond: Cond) -> Array:
        check_size(x, self.config.divisor)
        dtype = x.dtype
        embedding = self._embedding(timestep, cond).astype(self.config.compute.dtype)
        x = self.conv_in(x)
        results = [x]
        for block in self.down_blocks:
            x, more = block(x, embedding, cond["text"])
            results += more
        x = x if self.mid_block is None else self.mid_block(x, embedding, cond["text"])
        for block in self.up_blocks:
            x = block(x, results, embedding, cond["text"])
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x))).astype(dtype)

    def _embedding(self, timestep: Array, cond: Cond) -> Array:
        config = self.config
        wanted = {"text"}
        wanted |= {"label"} if self.class_embedding is not None else set()
        wanted |= {"pooled", "time_ids"} if self.add_embedding is not None else set()
        if set(cond) != wanted:
            raise ValueError(f"cond: got {sorted(cond)}, this network takes {sorted(wanted)}")
        sinusoids = lambda t, width: timesteps(t, width, flip=config.flip_sin_to_cos, shift=config.freq_shift)
        embedding = self.time_embedding(sinusoids(timestep, config.block_out_channels[0]))
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(cond["label"])
        if self.add_embedding is not None:
            numbers = sinusoids(cond["time_ids"], config.addition_time_embed_dim or 0)
            numbers = numbers.reshape(numbers.shape[0], -1)
            embedding = embedding + self.add_embedding(jnp.concatenate([cond["pooled"], numbers], axis=-1))
        return embedding


def check_size(x: Array, divisor: int) -> None:
    """Raises ValueError unless both edges of [B, H, W, C] are multiples of the divisor."""
    if x.shape[1] % divisor or x.shape[2] % divisor:
        raise ValueError(f"x: {x.shape[1]} x {x.shape[2]} pixels, both must be multiples of {divisor}")
