"""The U-Nets of DDPM (2006.11239), ADM (2105.05233), and score_sde (DDPM++ and NCSN++, 2011.13456), one set of fields.

- DDPM: positional embeddings, convolutions that halve and double, attention at one resolution.
- ADM: attention by heads of a fixed width, residual blocks that halve and double, "scale_shift", labels.
- NCSN++: Fourier features of log t with t = sigma, a picture beside the levels, the output divided by sigma.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.compute import PLAIN, Compute
from jdiff.models.convolution import GroupNorm, PixelAttention, conv
from jdiff.models.embeddings import Fourier, TimestepEmbedding, timesteps
from jdiff.models.layers import check_label, check_size
from jdiff.models.regularize import Regularization, numbered
from jdiff.models.unet_blocks import Down, Middle, Parts, Up, residual_blocks
from jdiff.models.unet_skip import SkipDown, SkipUp
from jdiff.typing import Array, Cond

KINDS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")
UP_KINDS = tuple(kind.replace("Downsample", "Upsample").replace("Down", "Up") for kind in KINDS)


@dataclass(frozen=True, kw_only=True)
class UNet2D:
    """A U-Net of images, with the fields and defaults of diffusers' UNet2DModel.

    Images are [B, H, W, in_channels], H and W multiples of `divisor`. Raises ValueError for levels that do not fit.
    """

    published: ClassVar[str] = "UNet2DModel"
    fixed: ClassVar[dict] = {"act_fn": ("silu", "swish")}
    ignored: ClassVar[frozenset] = frozenset({"dropout"})  # of training

    sample_size: int | tuple[int, int] | None = None
    """Edge of the images that it was trained on; changes nothing."""
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    """Whether x becomes 2 x - 1."""
    time_embedding_type: str = "positional"
    """"positional", "fourier" (t is sigma, and the output is divided by it) or "learned" (t is a whole number below
    `num_train_timesteps`; one outside is taken as the nearest inside)."""
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", *("AttnDownBlock2D",) * 3)
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (*("AttnUpBlock2D",) * 3, "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    """How levels with attention end: "conv" or "resnet"; and `upsample_type` likewise."""
    upsample_type: str = "conv"
    attention_head_dim: int | None = 8
    """Width of a head; None for one head."""
    norm_num_groups: int | None = 32
    """None, in NCSN++, for a quarter of the channels and 32 at the most."""
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    """Whether there is attention in the middle."""
    class_embed_type: str | None = None
    """How `label` enters: None, a class out of `num_class_embeds`; "timestep", a number [B] as the timestep;
    "identity", the vector [B, 4 block_out_channels[0]] itself."""
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None
    """Of a learned embedding."""
    compute: Compute = PLAIN

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name, known in (("down_block_types", KINDS), ("up_block_types", UP_KINDS)):
            kinds = getattr(self, name)
            if len(kinds) != levels or any(kind not in known for kind in kinds):
                raise ValueError(f"{name}: {kinds} must be {levels} of {', '.join(known)}")
        for name, known in (
            ("time_embedding_type", ("positional", "fourier", "learned")),
            ("mid_block_type", ("UNetMidBlock2D", None)),
            ("downsample_type", ("conv", "resnet")),
            ("upsample_type", ("conv", "resnet")),
            ("resnet_time_scale_shift", ("default", "scale_shift")),
            ("class_embed_type", ("timestep", "identity", None)),
            ("downsample_padding", (0, 1)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {known}")
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise ValueError("num_train_timesteps: None, but a learned embedding needs their number")
        skip = ["Skip" in kind for kind in (*self.down_block_types, *self.up_block_types)]
        if any(skip) and self.in_channels != 3:
            raise ValueError(f"in_channels: {self.in_channels}, but levels with a picture beside them need 3")
        if self.norm_num_groups is None and not all(skip):
            raise ValueError("norm_num_groups: None, but levels without a picture beside them need their number")

    @property
    def divisor(self) -> int:
        """What the edges of the images must be multiples of."""
        return 2 ** (len(self.block_out_channels) - 1)

    def groups(self, channels: int) -> int:
        """Of a group norm in the middle or at the end."""
        return min(channels // 4, 32) if self.norm_num_groups is None else self.norm_num_groups

    def module(self, rngs: nnx.Rngs) -> "UNet2DModule":
        """(x [B, H, W, in_channels], timestep [B], cond) -> [B, H, W, out_channels]; `cond` is empty, or
        {"label": integers [B]} with `num_class_embeds`."""
        return UNet2DModule(self, rngs=rngs)


class UNet2DModule(nnx.Module):
    """The network that a `UNet2D` describes."""

    def __init__(self, config: UNet2D, *, rngs: nnx.Rngs):
        widths, compute, self.config = config.block_out_channels, config.compute, config
        levels, embedding = len(widths), config.time_embedding_dim or 4 * widths[0]
        scale_shift = config.resnet_time_scale_shift == "scale_shift"
        parts = Parts(embedding, config.groups(widths[-1]), config.norm_eps, scale_shift, compute)
        self.conv_in = conv(config.in_channels, widths[0], compute, rngs=rngs)
        projections = {
            "positional": lambda: None,
            "fourier": lambda: Fourier(widths[0], rngs=rngs),
            "learned": lambda: nnx.Embed(config.num_train_timesteps or 0, widths[0], rngs=rngs),
        }
        self.time_proj = projections[config.time_embedding_type]()
        into = widths[0] * (1 + (config.time_embedding_type == "fourier"))
        self.time_embedding = TimestepEmbedding(into, embedding, compute, rngs=rngs)
        classes = config.num_class_embeds
        made = {
            None: lambda: None if classes is None else nnx.Embed(classes, embedding, rngs=rngs),
            "timestep": lambda: TimestepEmbedding(into, embedding, compute, rngs=rngs),
            "identity": lambda: None,
        }
        self.class_embedding = made[config.class_embed_type]()

        skips, down, arriving = [widths[0]], [], widths[0]
        for level, (kind, width) in enumerate(zip(config.down_block_types, widths, strict=True)):
            last = level == levels - 1
            down.append(self._down(kind, parts, arriving, width, last, rngs))
            skips += [width] * (config.layers_per_block + (not last))
            arriving = width
        self.down_blocks = nnx.List(down)
        middle = lambda: self._middle(parts, arriving, scale_shift, rngs)
        self.mid_block = None if config.mid_block_type is None else middle()
        up = []
        for step, kind in enumerate(config.up_block_types):
            width = widths[levels - 1 - step]
            taken = [skips.pop() for _ in range(config.layers_per_block + 1)]
            up.append(self._up(kind, parts, arriving, taken, width, step == levels - 1, rngs))
            arriving = width
        self.up_blocks = nnx.List(up)
        levels = (*self.down_blocks, self.mid_block, *self.up_blocks)
        numbered(residual_blocks([level for level in levels if level is not None]))
        self.conv_norm_out = GroupNorm(widths[0], config.groups(widths[0]), config.norm_eps)
        self.conv_out = conv(widths[0], config.out_channels, compute, rngs=rngs)

    def _heads(self, channels: int) -> int:
        return channels // (self.config.attention_head_dim or channels)

    def _attention(self, groups: int | None, scale: float = 1.0):
        config = self.config
        return lambda channels, rngs: PixelAttention(
            channels,
            self._heads(channels),
            config.compute,
            groups=groups,
            eps=config.norm_eps,
            output_scale=scale,
            rngs=rngs,
        )

    def _down(self, kind: str, parts: Parts, channels: int, out: int, last: bool, rngs: nnx.Rngs):
        config = self.config
        if "Skip" in kind:
            heads = self._heads(out) if "Attn" in kind else 0
            return SkipDown(parts, channels, out, config.layers_per_block, heads=heads, resample=not last, rngs=rngs)
        ends = {"AttnDownBlock2D": config.downsample_type, "ResnetDownsampleBlock2D": "resnet"}
        return Down(
            parts,
            channels,
            out,
            config.layers_per_block,
            attention=self._attention(parts.groups) if "Attn" in kind else None,
            resample="" if last else ends.get(kind, "conv"),
            padding=config.downsample_padding,
            rngs=rngs,
        )

    def _middle(self, parts: Parts, channels: int, scale_shift: bool, rngs: nnx.Rngs) -> Middle:
        config, scale = self.config, self.config.mid_block_scale_factor
        groups = config.attn_norm_num_groups
        groups = parts.groups if groups is None and not scale_shift else groups
        attention = self._attention(groups, scale) if config.add_attention else None
        return Middle(parts, channels, attention=attention, output_scale=scale, rngs=rngs)

    def _up(self, kind: str, parts: Parts, channels: int, skips: list[int], out: int, last: bool, rngs: nnx.Rngs):
        if "Skip" in kind:
            heads = self._heads(out) if "Attn" in kind else 0
            return SkipUp(parts, channels, skips, out, heads=heads, resample=not last, rngs=rngs)
        ends = {"AttnUpBlock2D": self.config.upsample_type, "ResnetUpsampleBlock2D": "resnet"}
        attention = self._attention(parts.groups) if "Attn" in kind else None
        resample = "" if last else ends.get(kind, "conv")
        return Up(parts, channels, skips, out, attention=attention, resample=resample, rngs=rngs)

    def __call__(self, x: Array, timestep: Array, cond: Cond, regularization: Regularization | None = None) -> Array:
        config, dtype = self.config, x.dtype
        check_size(x, config.divisor)
        embedding = self._embedding(timestep, cond).astype(config.compute.dtype)
        x = 2 * x - 1 if config.center_input_sample else x
        picture, x = x, self.conv_in(x)
        results = [x]
        for block in self.down_blocks:
            if isinstance(block, SkipDown):
                x, more, picture = block(x, embedding, picture, regularization)
            else:
                x, more = block(x, embedding, None, regularization)
            results += more
        x = x if self.mid_block is None else self.mid_block(x, embedding, None, regularization)
        drawn = None
        for block in self.up_blocks:
            if isinstance(block, SkipUp):
                x, drawn = block(x, results, embedding, drawn, regularization)
            else:
                x = block(x, results, embedding, None, regularization)
        x = self.conv_out(jax.nn.silu(self.conv_norm_out(x))).astype(dtype)
        x = x if drawn is None else x + drawn.astype(dtype)
        return x / timestep[:, None, None, None] if config.time_embedding_type == "fourier" else x

    def _embedding(self, timestep: Array, cond: Cond) -> Array:
        config, kind = self.config, self.config.class_embed_type
        if kind is None:
            check_label(cond, config.num_class_embeds or 0)
        elif set(cond) != {"label"}:
            raise ValueError(f"cond: got {sorted(cond)}, a network with class_embed_type={kind!r} takes ['label']")
        embedding = self.time_embedding(self._sinusoids(timestep))
        if not cond:
            return embedding
        label = self._sinusoids(cond["label"]) if kind == "timestep" else cond["label"]
        return embedding + (label if self.class_embedding is None else self.class_embedding(label))

    def _sinusoids(self, t: Array) -> Array:
        """What is said of numbers [B]. A learned table's first or last row stands for what lies outside it."""
        config = self.config
        if self.time_proj is None:
            width = config.block_out_channels[0]
            return timesteps(t, width, flip=config.flip_sin_to_cos, shift=config.freq_shift)
        if config.time_embedding_type == "learned":
            return self.time_proj(jnp.clip(t.astype(jnp.int32), 0, (config.num_train_timesteps or 1) - 1))
        return self.time_proj(jnp.log(t))
