"""A classifier of noisy images, for classifier guidance (ADM: Dhariwal & Nichol, 2105.05233).

The way down of a U-Net: levels of residual blocks, which the vector of the timestep scales and shifts, with attention
of all pixels to one another where the resolution is low. Instead of a way up, attention pools the pixels at the end: a
token that starts as their mean asks all of them and itself, each with a learned vector of its position,

    y = attention(query = mean(x) + p_0, keys and values = [mean(x) + p_0, x_1 + p_1, ..., x_N + p_N])

and logits are a linear image of y. As trained on x_t, softmax of the logits at (x, t) approaches p(class | x_t). No
equal blocks are stacked here, so `Compute.scan` changes nothing.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.attention import attend
from jdiff.models.compute import PLAIN, Compute
from jdiff.models.convolution import GroupNorm, PixelAttention, ResnetBlock, conv
from jdiff.models.embeddings import TimestepEmbedding, timesteps
from jdiff.models.layers import check_label
from jdiff.models.products import Linear
from jdiff.models.transformer import merge_heads, split_heads
from jdiff.typing import Array, Cond

EPS = 1e-5  # of every normalization


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A classifier of noisy images [B, sample_size, sample_size, in_channels]; the defaults are ADM's for ImageNet 64.

    Raises ValueError for levels, heads, groups or a size that do not fit one another.
    """

    in_channels: int = 3
    num_classes: int = 1000
    sample_size: int = 64
    """Edge of the images: the pixels at the end have learned positions."""
    block_out_channels: tuple[int, ...] = (128, 256, 384, 512)
    """Channels of each level; from one to the next, the edge is halved."""
    layers_per_block: int = 4
    """Residual blocks of a level."""
    attention: tuple[int, ...] = (1, 2, 3)
    """The levels whose residual blocks are followed by attention; the middle has it always."""
    attention_head_dim: int = 64
    norm_num_groups: int = 32
    compute: Compute = PLAIN

    def __post_init__(self):
        widths, groups, head = self.block_out_channels, self.norm_num_groups, self.attention_head_dim
        if self.num_classes < 2:
            raise ValueError(f"num_classes: {self.num_classes} is less than 2")
        if self.layers_per_block < 1:
            raise ValueError(f"layers_per_block: {self.layers_per_block} is less than 1")
        if outside := [level for level in self.attention if not 0 <= level < len(widths)]:
            raise ValueError(f"attention: levels {outside} do not exist, there are 0 to {len(widths) - 1}")
        if uneven := [width for width in widths if width % groups]:
            raise ValueError(f"block_out_channels: {uneven} do not divide by norm_num_groups={groups}")
        attended = [widths[level] for level in self.attention] + [widths[-1]]
        if uneven := [width for width in attended if width % head]:
            raise ValueError(f"block_out_channels: {uneven} do not divide by attention_head_dim={head}")
        if self.sample_size <= 0 or self.sample_size % self.divisor:
            raise ValueError(f"sample_size: {self.sample_size} is not a positive multiple of {self.divisor}")

    @property
    def divisor(self) -> int:
        """What the edge of the images must be a multiple of."""
        return 2 ** (len(self.block_out_channels) - 1)

    def module(self, rngs: nnx.Rngs) -> "ClassifierModule":
        """(x [B, H, W, in_channels], timestep [B], an empty dict) -> logits [B, num_classes]."""
        return ClassifierModule(self, rngs=rngs)


class AttentionPool(nnx.Module):
    """[B, H, W, C] -> [B, out]: what a token that starts as the mean of all pixels gathers from them."""

    def __init__(self, pixels: int, channels: int, out: int, heads: int, compute: Compute, *, rngs: nnx.Rngs):
        self.heads = heads
        normal = nnx.initializers.normal(channels**-0.5)
        self.positions = nnx.Param(normal(rngs(), (1 + pixels, channels), jnp.float32))
        self.to_q = Linear(channels, channels, dtype=compute.dtype, rngs=rngs)
        self.to_k = Linear(channels, channels, dtype=compute.dtype, rngs=rngs)
        self.to_v = Linear(channels, channels, dtype=compute.dtype, rngs=rngs)
        self.to_out = Linear(channels, out, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        pixels = x.reshape(x.shape[0], -1, x.shape[-1])
        tokens = jnp.concatenate([pixels.mean(axis=1, keepdims=True), pixels], axis=1)
        tokens = tokens + self.positions[...].astype(tokens.dtype)
        sides = (self.to_q(tokens[:, :1]), self.to_k(tokens), self.to_v(tokens))
        q, k, v = (split_heads(side, self.heads) for side in sides)
        return self.to_out(merge_heads(attend(q, k, v)))[:, 0]


class ClassifierModule(nnx.Module):
    """The network that a `Classifier` describes."""

    def __init__(self, config: Classifier, *, rngs: nnx.Rngs):
        widths, compute = config.block_out_channels, config.compute
        self.config = config
        self.conv_in = conv(config.in_channels, widths[0], compute, rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], compute, rngs=rngs)

        def resnet(channels: int, out: int, resample: str = "") -> ResnetBlock:
            groups, embedding = config.norm_num_groups, 4 * widths[0]
            told = {"embedding_width": embedding, "scale_shift": True, "resample": resample}
            return ResnetBlock(channels, out, compute, groups=groups, eps=EPS, **told, rngs=rngs)

        def attention(channels: int) -> PixelAttention:
            heads = channels // config.attention_head_dim
            return PixelAttention(channels, heads, compute, groups=config.norm_num_groups, eps=EPS, rngs=rngs)

        blocks, before = [], widths[0]
        for level, width in enumerate(widths):
            blocks += [resnet(before, before, "down")] if level else []
            for _ in range(config.layers_per_block):
                blocks += [resnet(before, width), *([attention(width)] if level in config.attention else [])]
                before = width
        self.blocks = nnx.List([*blocks, resnet(before, before), attention(before), resnet(before, before)])
        self.norm_out = GroupNorm(before, config.norm_num_groups, EPS)
        pixels, heads = (config.sample_size // config.divisor) ** 2, before // config.attention_head_dim
        self.pool = AttentionPool(pixels, before, config.num_classes, heads, compute, rngs=rngs)

    def __call__(self, x: Array, timestep: Array, cond: Cond | None = None) -> Array:
        check_label(cond or {}, 0)
        config, dtype, size = self.config, x.dtype, self.config.sample_size
        if x.shape[1:3] != (size, size):
            raise ValueError(f"x: an image of {x.shape[1]}x{x.shape[2]} pixels; {size}x{size} wanted")
        embedding = self.time_embedding(timesteps(timestep, config.block_out_channels[0]))
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x, embedding)
        return self.pool(jax.nn.silu(self.norm_out(x))).astype(dtype)
