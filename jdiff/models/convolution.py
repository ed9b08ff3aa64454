"""Layers of convolutional networks: group normalization, residual blocks, attention over pixels, halving and doubling.

- Group normalization (1803.08494) over the pixels and the channels of each of `groups` groups.
- A residual block (DDPM, 2006.11239), with e the vector of the timestep:
      h = conv(silu(norm(x)));  h = conv(silu(norm(h + a(e))));  (x + h) / scale
  or, with "scale_shift" (ADM, 2105.05233), norm(h) * (1 + a(e)) + b(e) in the place of norm(h + a(e)). A block that
  halves or doubles does so to x and to silu(norm(x)).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.models.attention import attend_pixels
from jdiff.models.compute import Compute, rematerialized
from jdiff.models.products import Conv, Linear
from jdiff.models.regularize import Regularization, regularized
from jdiff.models.transformer import merge_heads, split_heads
from jdiff.typing import Array


class GroupNorm(nnx.Module):
    """Zero mean and unit variance over each group of channels of [B, ..., C]; float32 inside."""

    def __init__(self, channels: int, groups: int, eps: float):
        if channels % groups:
            raise ValueError(f"groups: {groups} does not divide {channels} channels")
        self.groups, self.eps = groups, eps
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array) -> Array:
        b, c = x.shape[0], x.shape[-1]
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(b, -1, c)
        # Sums over pixels come first, by channel: so the whole is three passes over x and none of them regroups it.
        mean = self._of_groups(wide.sum(axis=1), wide.shape[1])
        variance = self._of_groups(jnp.square(wide - mean[:, None]).sum(axis=1), wide.shape[1])
        gain = jax.lax.rsqrt(variance + self.eps) * self.scale[...]
        normal = wide * gain[:, None] + (self.bias[...] - mean * gain)[:, None]
        return normal.reshape(x.shape).astype(x.dtype)

    def _of_groups(self, sums: Array, pixels: int) -> Array:
        """Sums [B, C] over pixels -> the mean over pixels and the channels of the group, of each channel [B, C]."""
        size = sums.shape[-1] // self.groups
        means = sums.reshape(-1, self.groups, size).sum(axis=-1) / (pixels * size)
        return jnp.repeat(means, size, axis=-1)


def conv(
    channels: int, out: int, compute: Compute, *, size: int = 3, stride: int = 1, rngs: nnx.Rngs, **options
) -> Conv:
    """A convolution with as much padding as leaves a stride of 1 the size that it was."""
    return Conv(
        channels, out, (size, size), strides=stride, padding=size // 2, dtype=compute.dtype, rngs=rngs, **options
    )


class Downsample(nnx.Module):
    """[B, H, W, C] -> [B, H/2, W/2, out] by a convolution of stride 2; `padding` 0 pads below and right alone."""

    def __init__(self, channels: int, out: int, compute: Compute, *, padding: int = 1, rngs: nnx.Rngs):
        pads = ((0, 1), (0, 1)) if padding == 0 else padding
        self.conv = Conv(channels, out, (3, 3), strides=2, padding=pads, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.conv(x)


class Upsample(nnx.Module):
    """[B, H, W, C] -> [B, 2H, 2W, out]: every pixel four times, then a convolution."""

    def __init__(self, channels: int, out: int, compute: Compute, *, rngs: nnx.Rngs):
        self.compute = compute
        self.conv = conv(channels, out, compute, rngs=rngs)

    @rematerialized
    def __call__(self, x: Array) -> Array:
        return self.conv(double(x))


def halve(x: Array) -> Array:
    """[B, H, W, C] -> [B, H/2, W/2, C]: mean over squares of 2x2."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def double(x: Array) -> Array:
    """[B, H, W, C] -> [B, 2H, 2W, C]: every pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def fir_halve(x: Array, padding: int = 1) -> Array:
    """`halve`, by the filter (1, 3, 3, 1) x (1, 3, 3, 1) (StyleGAN2, 1912.04958); zeros lie outside."""
    return _filtered(x, FIR, window_strides=(2, 2), padding=((padding, padding),) * 2)


def fir_double(x: Array) -> Array:
    """`double`, by the filter of `fir_halve`."""
    return _filtered(x, 4 * FIR, window_strides=(1, 1), padding=((2, 2), (2, 2)), lhs_dilation=(2, 2))


FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64


def _filtered(x: Array, kernel: np.ndarray, **how: Any) -> Array:
    """Each channel of [B, H, W, C] convolved with a kernel [4, 4]."""
    channels = x.shape[-1]
    rhs = jnp.broadcast_to(jnp.asarray(kernel, x.dtype)[:, :, None, None], (4, 4, 1, channels))
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, rhs, feature_group_count=channels, dimension_numbers=names, **how)


RESAMPLE = {"": lambda x: x, "down": halve, "up": double, "fir_down": fir_halve, "fir_up": fir_double}


class ResnetBlock(nnx.Module):
    """[B, H, W, channels] -> [B, H', W', out], H' and W' as `resample`, a key of RESAMPLE, says.

    `embedding_width` is that of the vector, or None for a block without one. `scale_shift` says how it enters.
    `shortcut` is for a product on the way past, which there is where the channels change. In training, dropout comes
    before the second convolution (1207.0580), and stochastic depth leaves out all but what passes by.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        compute: Compute,
        *,
        embedding_width: int | None,
        groups: int,
        groups_out: int | None = None,
        eps: float,
        scale_shift: bool = False,
        resample: str = "",
        output_scale: float = 1.0,
        shortcut: bool = False,
        rngs: nnx.Rngs,
    ):
        self.scale_shift, self.resample, self.output_scale = scale_shift, resample, output_scale
        self.compute, self.place = compute, (0, 1)
        self.norm1 = GroupNorm(channels, groups, eps)
        self.conv1 = conv(channels, out, compute, rngs=rngs)
        told = (1 + scale_shift) * out
        linear = lambda width: Linear(width, told, dtype=compute.dtype, rngs=rngs)
        self.time_emb_proj = None if embedding_width is None else linear(embedding_width)
        self.norm2 = GroupNorm(out, groups if groups_out is None else groups_out, eps)
        self.conv2 = conv(out, out, compute, rngs=rngs)
        shortcut = shortcut or channels != out
        self.conv_shortcut = conv(channels, out, compute, size=1, rngs=rngs) if shortcut else None

    @rematerialized
    def __call__(
        self, x: Array, embedding: Array | None = None, *, regularization: Regularization | None = None
    ) -> Array:
        resample = RESAMPLE[self.resample]
        hidden = self.conv1(resample(jax.nn.silu(self.norm1(x))))
        x = resample(x)
        if self.time_emb_proj is None or embedding is None:
            hidden = self.norm2(hidden)
        else:
            told = self.time_emb_proj(jax.nn.silu(embedding))[:, None, None]
            if self.scale_shift:
                scale, shift = jnp.split(told, 2, axis=-1)
                hidden = self.norm2(hidden) * (1 + scale) + shift
            else:
                hidden = self.norm2(hidden + told)
        hidden = regularized(regularization, self.place, self.conv2, jax.nn.silu(hidden))
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return (x + hidden) / self.output_scale


class PixelAttention(nnx.Module):
    """Attention of all pixels of [B, H, W, C] to one another: (x + attention(norm(x))) / output_scale; no norm
    where `groups` is None. What follows x in a call is not used."""

    def __init__(
        self,
        channels: int,
        heads: int,
        compute: Compute,
        *,
        groups: int | None,
        eps: float,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if channels % heads:
            raise ValueError(f"heads: {heads} does not divide {channels} channels")
        self.heads, self.output_scale, self.compute = heads, output_scale, compute
        self.group_norm = None if groups is None else GroupNorm(channels, groups, eps)
        self.to_q = Linear(channels, channels, dtype=compute.dtype, rngs=rngs)
        self.to_k = Linear(channels, channels, dtype=compute.dtype, rngs=rngs)
        self.to_v = Linear(channels, channels, dtype=compute.dtype, rngs=rngs)
        self.to_out = Linear(channels, channels, dtype=compute.dtype, rngs=rngs)

    @rematerialized
    def __call__(self, x: Array, *_: Any) -> Array:
        b, h, w, c = x.shape
        tokens = (x if self.group_norm is None else self.group_norm(x)).reshape(b, h * w, c)
        q, k, v = (split_heads(part(tokens), self.heads) for part in (self.to_q, self.to_k, self.to_v))
        mixed = self.to_out(merge_heads(attend_pixels(q, k, v)))
        return (x + mixed.reshape(x.shape)) / self.output_scale
