"""Blocks of the U-Nets of EDM (2206.00364, appendix C): a residual block, then perhaps an attention over its pixels;
and the vector that they see, whose formula is that of `unet_edm.py`.

Both add to what they are given and divide the sum by `output_scale`: sqrt(2), which keeps the variance, or 1. Group
norms have 32 groups, or as many as leave each 4 channels.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.attention import attend_pixels
from jdiff.models.compute import Compute, rematerialized
from jdiff.models.convolution import GroupNorm, ResnetBlock, conv
from jdiff.models.embeddings import Fourier, timesteps
from jdiff.models.layers import ZERO, check_label
from jdiff.models.products import Linear
from jdiff.models.regularize import Regularization
from jdiff.models.transformer import merge_heads
from jdiff.typing import Array, Cond

FILTERS = {(1, 1): "", (1, 3, 3, 1): "fir_"}


class Kind(NamedTuple):
    """What all parts of a network share."""

    song: bool  # of a SongUNet, not of a DhariwalUNet
    told: int  # numbers that say the noise label
    embedding_width: int
    eps: float
    output_scale: float
    compute: Compute
    fourier: bool = False
    encoder: str = "standard"
    decoder: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)

    def resample(self, which: str) -> str:
        """The key of RESAMPLE for "down" or "up"."""
        return FILTERS[self.resample_filter] + which


class Mapping(nnx.Module):
    """(noise label [B], cond) -> the vector [B, embedding_width] before its last activation, which is in the blocks."""

    def __init__(self, kind: Kind, *, label_dim: int, augment_dim: int, rngs: nnx.Rngs):
        self.kind, self.label_dim, self.augment_dim = kind, label_dim, augment_dim
        told, wide, song, dtype = kind.told, kind.embedding_width, kind.song, kind.compute.dtype
        self.map_noise = Fourier(told // 2, rngs=rngs) if kind.fourier else None
        label = lambda: Linear(label_dim, told if song else wide, use_bias=song, dtype=dtype, rngs=rngs)
        self.map_label = label() if label_dim else None
        augment = lambda: Linear(augment_dim, told, use_bias=False, dtype=dtype, rngs=rngs)
        self.map_augment = augment() if augment_dim else None
        self.map_layer0 = Linear(told, wide, dtype=dtype, rngs=rngs)
        self.map_layer1 = Linear(wide, wide, dtype=dtype, rngs=rngs)

    def __call__(self, noise_label: Array, cond: Cond) -> Array:
        song, dtype, cond = self.kind.song, self.kind.compute.dtype, dict(cond)
        augment = cond.pop("augment", None) if self.augment_dim else None
        check_label(cond, self.label_dim)
        if self.map_noise is None:
            told = timesteps(noise_label, self.kind.told, flip=not song, shift=float(song))
        else:
            told = self.map_noise(noise_label)
        label = 0.0
        if self.map_label is not None:
            vectors = unit_vectors(cond["label"], self.label_dim)
            label = self.map_label(vectors * math.sqrt(self.label_dim) if song else vectors)
        told = told + label if song else told
        if self.map_augment is not None and augment is not None:
            told = told + self.map_augment(augment)
        embedding = self.map_layer1(jax.nn.silu(self.map_layer0(told.astype(dtype))))
        return embedding if song else (embedding + label).astype(dtype)


def unit_vectors(label: Array, count: int) -> Array:
    """[B] -> [B, count]: zeros for label == count, NaN for any that is no class, never another one's."""
    known = (label >= 0) & (label <= count)
    return jnp.where(known[:, None], jax.nn.one_hot(label, count), jnp.nan)


def group_norm(channels: int, eps: float) -> GroupNorm:
    """That of so many channels."""
    return GroupNorm(channels, _groups(channels), eps)


def _groups(channels: int) -> int:
    return min(32, channels // 4)


class Attention(nnx.Module):
    """Attention of all pixels of [B, H, W, C] to one another: (x + attention(norm(x))) / output_scale."""

    def __init__(self, kind: Kind, channels: int, heads: int, *, rngs: nnx.Rngs):
        self.heads, self.output_scale, self.compute = heads, kind.output_scale, kind.compute
        self.norm = group_norm(channels, kind.eps)
        self.qkv = conv(channels, 3 * channels, kind.compute, size=1, rngs=rngs)
        self.proj = conv(channels, channels, kind.compute, size=1, kernel_init=ZERO, rngs=rngs)

    @rematerialized
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        # The query, key and value of a channel stand side by side.
        qkv = self.qkv(self.norm(x)).reshape(b, h * w, self.heads, c // self.heads, 3)
        mixed = merge_heads(attend_pixels(qkv[..., 0], qkv[..., 1], qkv[..., 2]))
        return (x + self.proj(mixed.reshape(x.shape))) / self.output_scale


class Block(nnx.Module):
    """[B, H, W, channels] -> [B, H', W', out], H' and W' as `resample`, a key of RESAMPLE, says; `heads` 0 is for no
    attention."""

    def __init__(self, kind: Kind, channels: int, out: int, *, resample: str = "", heads: int = 0, rngs: nnx.Rngs):
        self.resnet = ResnetBlock(
            channels,
            out,
            kind.compute,
            embedding_width=kind.embedding_width,
            groups=_groups(channels),
            groups_out=_groups(out),
            eps=kind.eps,
            scale_shift=not kind.song,
            resample=resample,
            output_scale=kind.output_scale,
            shortcut=kind.song and bool(resample),
            rngs=rngs,
        )
        self.resnet.conv2.kernel = nnx.Param(jnp.zeros_like(self.resnet.conv2.kernel[...]))
        self.attention = Attention(kind, out, heads, rngs=rngs) if heads else None

    def __call__(self, x: Array, embedding: Array, regularization: Regularization | None) -> Array:
        x = self.resnet(x, embedding, regularization=regularization)
        return x if self.attention is None else self.attention(x)
