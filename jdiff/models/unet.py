"""U-Net: convolutions on a pyramid of resolutions (DDPM, 2006.11239; ADM, 2105.05233).

Level i works at 1/2^i of the resolution of the patches with channels * multipliers[i] channels. The levels above the
last one are walked down, then up again, each block on the way up taking the output of its mirror image on the way
down; the last level lies in the middle. One block, with e the vector of the noise label and the class:

    h = conv(silu(norm(x)));  h = conv(silu(norm(h) * (1 + a(e)) + b(e)));  x + h, then x + attention(norm(x))

Differences from ADM, for speed: the network can work on patches (space to depth), normalization is RMS over channels,
halving is a mean over 2x2 and doubling a repetition, and a skip is merged by a 1x1 product before its block instead
of widening the block's 3x3 convolutions. The second convolution of a block and the last layer start at zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.convolution import double, halve
from jdiff.models.layers import ZERO, Conditioning, SelfAttention, depth_to_space, rms_norm, space_to_depth
from jdiff.models.products import Conv, Linear
from jdiff.models.regularize import Regularization, numbered, regularized
from jdiff.typing import Array, Cond


@dataclass(frozen=True, kw_only=True)
class UNet:
    """The shape of a U-Net; plain values.

    Raises `ValueError` for an impossible combination.
    """

    channels: int = 64
    """Width at level 0."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Width of each level, in units of `channels`; their number is the number of levels."""
    blocks: tuple[int, ...] = (2, 2, 2)
    """Residual blocks of each level (on the way down, and as many on the way up)."""
    attention: tuple[int, ...] = (2,)
    """The levels whose blocks are followed by self-attention."""
    heads: int = 4
    """Attention heads; must divide the width of the levels in `attention`."""
    patch: int = 2
    """Edge of the square of pixels that is one position at level 0."""

    def __post_init__(self):
        levels = len(self.multipliers)
        if len(self.blocks) != levels:
            raise ValueError(f"blocks: {self.blocks} has {len(self.blocks)} entries for {levels} multipliers")
        outside = [level for level in self.attention if not 0 <= level < levels]
        if outside:
            raise ValueError(f"attention: levels {outside} do not exist, there are 0 to {levels - 1}")
        uneven = [level for level in self.attention if self.width(level) % self.heads]
        if uneven:
            raise ValueError(f"heads: {self.heads} does not divide the width of levels {uneven}")

    def width(self, level: int) -> int:
        """Channels at `level`."""
        return self.channels * self.multipliers[level]

    @property
    def divisor(self) -> int:
        """What the edge of the images must be a multiple of."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    def for_images(
        self, *, size: int, channels: int, out_channels: int, num_classes: int
    ) -> Callable[[nnx.Rngs], nnx.Module]:
        """What makes the module (x [B, size, size, channels], timestep [B], cond) -> [B, size, size, out_channels]."""
        return lambda rngs: UNetModule(self, channels, out_channels, num_classes, rngs=rngs)


class Block(nnx.Module):
    """Residual block [B, H, W, width_in] -> [B, H, W, width]; a change of width goes through a 1x1 product."""

    def __init__(self, width_in: int, width: int, embedding: int, heads: int, *, rngs: nnx.Rngs):
        conv = partial(Conv, kernel_size=(3, 3), rngs=rngs)
        self.gain, self.place = nnx.Param(jnp.ones(width)), (0, 1)
        self.widen = Linear(width_in, width, use_bias=False, rngs=rngs) if width_in != width else None
        self.first = conv(width, width)
        self.modulation = Linear(embedding, 2 * width, kernel_init=ZERO, rngs=rngs)
        self.second = conv(width, width, kernel_init=ZERO)
        self.attention = SelfAttention(width, heads, zero=True, rngs=rngs) if heads else None

    def __call__(self, x: Array, embedding: Array, regularization: Regularization | None) -> Array:
        x = x if self.widen is None else self.widen(x)
        scale, shift = jnp.split(self.modulation(embedding)[:, None, None], 2, axis=-1)
        hidden = self.first(jax.nn.silu(rms_norm(x) * self.gain[...]))
        hidden = jax.nn.silu(rms_norm(hidden) * (1.0 + scale) + shift)
        x = x + regularized(regularization, self.place, self.second, hidden)
        if self.attention is None:
            return x
        b, h, w, width = x.shape
        return x + self.attention(rms_norm(x).reshape(b, h * w, width)).reshape(x.shape)


class UNetModule(nnx.Module):
    """The network that a `UNet` describes."""

    def __init__(self, config: UNet, channels: int, out_channels: int, num_classes: int, *, rngs: nnx.Rngs):
        embedding = 4 * config.channels
        last = len(config.multipliers) - 1
        pixels = config.patch**2

        def block(width_in: int, level: int) -> Block:
            heads = config.heads if level in config.attention else 0
            return Block(width_in, config.width(level), embedding, heads, rngs=rngs)

        def walk(level: int, width_in: int, count: int) -> nnx.List:
            widths = [width_in] + [config.width(level)] * (count - 1)
            return nnx.List([block(width, level) for width in widths[:count]])

        self.patch = config.patch
        self.conditioning = Conditioning(embedding, num_classes, rngs=rngs)
        self.enter = Conv(channels * pixels, config.width(0), (3, 3), rngs=rngs)
        above = [config.width(max(level - 1, 0)) for level in range(last + 1)]
        self.down = nnx.List([walk(i, above[i], config.blocks[i]) for i in range(last)])
        self.middle = walk(last, above[last], config.blocks[last])
        self.up = nnx.List([walk(i, config.width(i), config.blocks[i]) for i in range(last)])
        numbered([block for blocks in (*self.down, self.middle, *reversed(self.up)) for block in blocks])
        self.merge = nnx.List([self._merges(config, i, rngs) for i in range(last)])
        self.gain = nnx.Param(jnp.ones(config.width(0)))
        self.leave = Conv(config.width(0), out_channels * pixels, (3, 3), kernel_init=ZERO, rngs=rngs)

    @staticmethod
    def _merges(config: UNet, level: int, rngs: nnx.Rngs) -> nnx.List:
        width = config.width(level)
        arriving = [config.width(level + 1)] + [width] * (config.blocks[level] - 1)
        return nnx.List([Linear(w + width, width, rngs=rngs) for w in arriving])

    def __call__(self, x: Array, timestep: Array, cond: Cond, regularization: Regularization | None = None) -> Array:
        embedding = self.conditioning(timestep, cond)
        x = self.enter(space_to_depth(x, self.patch))
        skips = []
        for blocks in self.down:
            for block in blocks:
                x = block(x, embedding, regularization)
                skips.append(x)
            x = halve(x)
        for block in self.middle:
            x = block(x, embedding, regularization)
        for blocks, merges in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = double(x)
            for block, merge in zip(blocks, merges, strict=True):
                x = block(merge(jnp.concatenate([x, skips.pop()], axis=-1)), embedding, regularization)
        x = self.leave(jax.nn.silu(rms_norm(x) * self.gain[...]))
        return depth_to_space(x, self.patch)
