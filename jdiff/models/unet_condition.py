"""The text-conditional U-Net of Stable Diffusion 1, 2 and XL (Rombach et al., 2112.10752; Podell et al., 2307.01952).

The vector of the timestep is added to that of the label, and in XL to that of a pooled text embedding and six numbers
(original height and width, top and left of the crop, target height and width), each as sinusoids.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.compute import PLAIN, Compute
from jdiff.models.convolution import GroupNorm, conv
from jdiff.models.embeddings import TimestepEmbedding, timesteps
from jdiff.models.layers import check_size
from jdiff.models.products import Linear
from jdiff.models.unet_blocks import Down, MakeAttention, Middle, Parts, PixelTransformer, Up
from jdiff.typing import Array, Cond

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")


def _later(default: Any) -> Any:
    """A field that configs of older runs lack; they are read with the default."""
    return dataclasses.field(default=default, metadata={"was": default})


@dataclass(frozen=True, kw_only=True)
class UNet2DCondition:
    """A U-Net that reads text, with the fields of diffusers' UNet2DConditionModel; the defaults are Stable Diffusion 1.

    Images are [B, H, W, in_channels], H and W multiples of `divisor`. What is a tuple or one value is for each level,
    from the highest resolution to the lowest. Raises ValueError for levels that do not fit together.
    """

    published: ClassVar[str] = "UNet2DConditionModel"
    fixed: ClassVar[dict] = {
        "act_fn": ("silu", "swish"),
        "reverse_transformer_layers_per_block": None,
        "num_attention_heads": None,
        "dual_cross_attention": (False, None),
        "time_embedding_type": "positional",
        "time_embedding_act_fn": None,
        "timestep_post_act": None,
        "attention_type": "default",
    }
    # Read by blocks of other kinds alone, but for two: dropout is of training, and softmax is in float32 anyway.
    ignored: ClassVar[frozenset] = frozenset(
        {
            "addition_embed_type_num_heads",
            "cross_attention_norm",
            "dropout",
            "mid_block_only_cross_attention",
            "resnet_out_scale_factor",
            "resnet_skip_time_act",
            "upcast_attention",
        }
    )

    sample_size: int | tuple[int, int] | None = None
    """Edge of the images that it was trained on; changes nothing."""
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = _later(False)
    """Whether x becomes 2 x - 1."""
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    only_cross_attention: bool | tuple[bool, ...] = _later(False)
    """Whether pixels attend to the text twice and not to one another; not in the middle."""
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = _later(1)
    """What the sum at the end of a residual block in the middle is divided by."""
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    """Width of the text's embeddings, after their projection. Without a text, pixels attend to one another twice,
    where these are the widths of the levels."""
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    """The number of heads: an old mistake that the name keeps."""
    use_linear_projection: bool = False
    encoder_hid_dim: int | None = _later(None)
    """Width of the text's embeddings where they are projected to `cross_attention_dim`."""
    encoder_hid_dim_type: str | None = _later(None)
    """"text_proj" or None, which are the same."""
    class_embed_type: str | None = _later(None)
    """How `label` enters: None, a class out of `num_class_embeds`; "timestep", a number [B] as the timestep;
    "projection" or "simple_projection", numbers [B, projection_class_embeddings_input_dim] by two layers or by one;
    "identity", the vector [B, 4 block_out_channels[0]] itself."""
    class_embeddings_concat: bool = _later(False)
    """Whether the label's vector lies beside the timestep's, rather than being added."""
    addition_embed_type: str | None = None
    """"text_time" in Stable Diffusion XL."""
    addition_time_embed_dim: int | None = None
    num_class_embeds: int | None = None
    resnet_time_scale_shift: str = "default"
    time_embedding_dim: int | None = None
    time_cond_proj_dim: int | None = _later(None)
    """Width of "timestep_cond", which is added to the timestep's sinusoids: in latent consistency models (2310.04378),
    sinusoids of the scale of guidance."""
    conv_in_kernel: int = _later(3)
    conv_out_kernel: int = _later(3)
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
        for name, options in CHOICES.items():
            if getattr(self, name) not in options:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(map(str, options))}")
        for name in ("conv_in_kernel", "conv_out_kernel"):
            if getattr(self, name) not in (1, 3, 5, 7):
                raise ValueError(f"{name}: {getattr(self, name)} is not 1, 3, 5 or 7")
        if self.downsample_padding > 1:
            raise ValueError(f"downsample_padding: {self.downsample_padding} is not 0 or 1")
        if self.encoder_hid_dim is None and self.encoder_hid_dim_type is not None:
            raise ValueError("encoder_hid_dim: None, but encoder_hid_dim_type='text_proj' needs it")
        if self.encoder_hid_dim is not None and isinstance(self.cross_attention_dim, tuple):
            raise ValueError(f"cross_attention_dim: {self.cross_attention_dim}, but encoder_hid_dim needs one number")
        if self.projected and self.projection_class_embeddings_input_dim is None:
            raise ValueError(
                f"projection_class_embeddings_input_dim: None, but class_embed_type={self.class_embed_type!r} needs it"
            )
        if self.class_embeddings_concat and not self.labelled:
            raise ValueError("class_embeddings_concat: True, but there is no class embedding")
        for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if self.addition_embed_type is not None and getattr(self, name) is None:
                raise ValueError(f"{name}: None, but addition_embed_type={self.addition_embed_type!r} needs it")

    @property
    def projected(self) -> bool:
        """Whether the label is numbers that are projected."""
        return self.class_embed_type in ("projection", "simple_projection")

    @property
    def labelled(self) -> bool:
        """Whether there is a label."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def text_width(self) -> int:
        """Of the embeddings that are given."""
        return self.encoder_hid_dim or self.at("cross_attention_dim", 0)

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
        if isinstance(self.cross_attention_dim, tuple) and len(set(self.cross_attention_dim)) > 1:
            raise ValueError(f"cross_attention_dim: {self.cross_attention_dim} wants several texts; training has one")
        if self.time_cond_proj_dim is not None:
            raise ValueError(
                f"time_cond_proj_dim: {self.time_cond_proj_dim} is for a distilled network, not trained here"
            )
        shapes: dict[str, tuple[int, ...]] = {"text": (tokens, self.text_width)}
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

        `cond` holds "text" [B, N, encoder_hid_dim or cross_attention_dim]; where there is a label, "label", as
        `class_embed_type` says; with "text_time" also "pooled" [B, P] and "time_ids" [B, M] of P + M
        addition_time_embed_dim numbers; with a `time_cond_proj_dim`, "timestep_cond" of that width.
        """
        return UNet2DConditionModule(self, rngs=rngs)


PER_LEVEL = ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim")
PER_LEVEL += ("only_cross_attention",)
CHOICES = {
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
    "addition_embed_type": ("text_time", None),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": ("timestep", "identity", "projection", "simple_projection", None),
    "encoder_hid_dim_type": ("text_proj", None),
}


class UNet2DConditionModule(nnx.Module):
    """The network that a `UNet2DCondition` describes."""

    def __init__(self, config: UNet2DCondition, *, rngs: nnx.Rngs):
        widths, compute, self.config = config.block_out_channels, config.compute, config
        levels, embedding = len(widths), config.time_embedding_dim or 4 * widths[0]
        scale_shift = config.resnet_time_scale_shift == "scale_shift"
        wide = embedding * (1 + config.class_embeddings_concat)
        parts = Parts(wide, config.norm_num_groups, config.norm_eps, scale_shift, compute)

        def attention(level: int, *, middle: bool = False) -> MakeAttention:
            heads, depth = config.at("attention_head_dim", level), config.at("transformer_layers_per_block", level)
            text_alone = bool(config.at("only_cross_attention", level)) and not middle
            return lambda channels, rngs: PixelTransformer(
                channels,
                heads,
                depth,
                config.at("cross_attention_dim", level),
                compute,
                groups=config.norm_num_groups,
                linear=config.use_linear_projection,
                text_alone=text_alone,
                rngs=rngs,
            )

        self.conv_in = conv(config.in_channels, widths[0], compute, size=config.conv_in_kernel, rngs=rngs)
        cond_width = config.time_cond_proj_dim
        self.time_embedding = TimestepEmbedding(widths[0], embedding, compute, cond_width=cond_width, rngs=rngs)
        self.class_embedding = _class_embedding(config, embedding, rngs)
        width, inner = config.encoder_hid_dim, config.at("cross_attention_dim", 0)
        linear = lambda width: Linear(width, inner, dtype=compute.dtype, rngs=rngs)
        self.encoder_hid_proj = None if width is None else linear(width)
        added = config.projection_class_embeddings_input_dim
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
        attend, scale = attention(levels - 1, middle=True), config.mid_block_scale_factor
        middle = lambda: Middle(parts, arriving, attention=attend, output_scale=scale, rngs=rngs)
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
        self.conv_out = conv(widths[0], config.out_channels, compute, size=config.conv_out_kernel, rngs=rngs)

    def __call__(self, x: Array, timestep: Array, cond: Cond) -> Array:
        check_size(x, self.config.divisor)
        dtype = x.dtype
        embedding = self._embedding(timestep, cond).astype(self.config.compute.dtype)
        text = cond.get("text")
        text = text if self.encoder_hid_proj is None else self.encoder_hid_proj(text)
        x = self.conv_in(2 * x - 1 if self.config.center_input_sample else x)
        results = [x]
        for block in self.down_blocks:
            x, more = block(x, embedding, text)
            results += more
        x = x if self.mid_block is None else self.mid_block(x, embedding, text)
        for block in self.up_blocks:
            x = block(x, results, embedding, text)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x))).astype(dtype)

    def _embedding(self, timestep: Array, cond: Cond) -> Array:
        config = self.config
        wanted = {"text"}
        # Without one, pixels attend to one another twice, which wants levels of the text's width.
        widths = config.cross_attention_dim
        alone = config.block_out_channels == widths and not config.only_cross_attention
        wanted -= {"text"} - cond.keys() if alone else set()
        wanted |= {"label"} if config.labelled else set()
        wanted |= {"pooled", "time_ids"} if self.add_embedding is not None else set()
        wanted |= {"timestep_cond"} if config.time_cond_proj_dim is not None else set()
        if set(cond) != wanted:
            raise ValueError(f"cond: got {sorted(cond)}, this network takes {sorted(wanted)}")
        sinusoids = lambda t, width: timesteps(t, width, flip=config.flip_sin_to_cos, shift=config.freq_shift)
        embedding = self.time_embedding(sinusoids(timestep, config.block_out_channels[0]), cond.get("timestep_cond"))
        if config.labelled:
            label = cond["label"]
            label = sinusoids(label, config.block_out_channels[0]) if config.class_embed_type == "timestep" else label
            label = label if self.class_embedding is None else self.class_embedding(label)
            both = jnp.concatenate([embedding, label], axis=-1)
            embedding = both if config.class_embeddings_concat else embedding + label
        if self.add_embedding is not None:
            numbers = sinusoids(cond["time_ids"], config.addition_time_embed_dim or 0)
            numbers = numbers.reshape(numbers.shape[0], -1)
            embedding = embedding + self.add_embedding(jnp.concatenate([cond["pooled"], numbers], axis=-1))
        return embedding


def _class_embedding(config: UNet2DCondition, width: int, rngs: nnx.Rngs) -> nnx.Module | None:
    """What makes a vector of the label: none where it is one."""
    classes, compute = config.num_class_embeds or 0, config.compute
    told = config.projection_class_embeddings_input_dim or 0
    made = {
        None: lambda: nnx.Embed(classes, width, rngs=rngs),
        "timestep": lambda: TimestepEmbedding(config.block_out_channels[0], width, compute, rngs=rngs),
        "projection": lambda: TimestepEmbedding(told, width, compute, rngs=rngs),
        "simple_projection": lambda: Linear(told, width, dtype=compute.dtype, rngs=rngs),
        "identity": lambda: None,
    }
    return made[config.class_embed_type]() if config.labelled else None
