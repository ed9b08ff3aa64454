"""Levels of a U-Net: residual blocks, each followed by an attention or by none, then a halving or a doubling.

A level on the way down gives all its intermediate results; the level at the same resolution on the way up takes them,
last one first, each concatenated with what arrives (U-Net, 1505.04597; DDPM, 2006.11239). In latent diffusion
(2112.10752) the attention is a small transformer over pixels: attention to one another, to the text, then two layers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from jdiff.models.ambient import along_batch
from jdiff.models.compute import Compute, Stack
from jdiff.models.convolution import Downsample, GroupNorm, ResnetBlock, Upsample
from jdiff.models.products import Conv, Linear
from jdiff.models.regularize import Regularization
from jdiff.models.transformer import Attention, FeedForward
from jdiff.typing import Array

MakeAttention = Callable[[int, nnx.Rngs], nnx.Module]  # (channels, rngs) -> (x, text) -> x


class Parts(NamedTuple):
    """What all residual blocks of a U-Net share."""

    embedding_width: int
    groups: int
    eps: float
    scale_shift: bool
    compute: Compute

    def resnet(self, channels: int, out: int, rngs: nnx.Rngs, resample: str = "", output_scale: float = 1.0):
        """A residual block."""
        return ResnetBlock(
            channels,
            out,
            self.compute,
            embedding_width=self.embedding_width,
            groups=self.groups,
            eps=self.eps,
            scale_shift=self.scale_shift,
            resample=resample,
            output_scale=output_scale,
            rngs=rngs,
        )


class Down(nnx.Module):
    """(x, embedding, text, regularization) -> x and the results on the way, which begin after the first residual block.

    `resample` is how the level ends: "conv", "resnet" or "" for not at all; `padding` is that of "conv".
    """

    def __init__(
        self,
        parts: Parts,
        channels: int,
        out: int,
        depth: int,
        *,
        attention: MakeAttention | None,
        resample: str,
        padding: int,
        rngs: nnx.Rngs,
    ):
        widths = [channels] + [out] * (depth - 1)
        self.resnets = nnx.List([parts.resnet(width, out, rngs) for width in widths])
        self.attentions = nnx.List([attention(out, rngs) for _ in widths]) if attention else None
        ends = {
            "conv": lambda: nnx.List([Downsample(out, out, parts.compute, padding=padding, rngs=rngs)]),
            "resnet": lambda: nnx.List([parts.resnet(out, out, rngs, "down")]),
            "": lambda: None,
        }
        self.downsamplers = ends[resample]()

    def __call__(
        self, x: Array, embedding: Array, text: Array | None, regularization: Regularization | None = None
    ) -> tuple[Array, list[Array]]:
        results = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, embedding, regularization=regularization)
            x = x if self.attentions is None else self.attentions[i](x, text)
            results.append(x)
        if self.downsamplers is not None:
            x = resampled(self.downsamplers[0], x, embedding, regularization)
            results.append(x)
        return x, results


class Middle(nnx.Module):
    """(x, embedding, text, regularization) -> x: a residual block, then attention and another residual block."""

    def __init__(
        self,
        parts: Parts,
        channels: int,
        *,
        attention: MakeAttention | None,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        make = lambda: parts.resnet(channels, channels, rngs, output_scale=output_scale)
        self.resnets = nnx.List([make(), make()])
        self.attentions = nnx.List([attention(channels, rngs)]) if attention else None

    def __call__(
        self, x: Array, embedding: Array, text: Array | None, regularization: Regularization | None = None
    ) -> Array:
        x = self.resnets[0](x, embedding, regularization=regularization)
        x = x if self.attentions is None else self.attentions[0](x, text)
        return self.resnets[1](x, embedding, regularization=regularization)


class Up(nnx.Module):
    """(x, results, embedding, text, regularization) -> x; takes as many of the last results as it has residual blocks.

    `channels` arrive, and `skips` says those of the results, last one first.
    """

    def __init__(
        self,
        parts: Parts,
        channels: int,
        skips: Sequence[int],
        out: int,
        *,
        attention: MakeAttention | None,
        resample: str,
        rngs: nnx.Rngs,
    ):
        widths = [channels] + [out] * (len(skips) - 1)
        self.resnets = nnx.List([parts.resnet(w + s, out, rngs) for w, s in zip(widths, skips, strict=True)])
        self.attentions = nnx.List([attention(out, rngs) for _ in skips]) if attention else None
        ends = {
            "conv": lambda: nnx.List([Upsample(out, out, parts.compute, rngs=rngs)]),
            "resnet": lambda: nnx.List([parts.resnet(out, out, rngs, "up")]),
            "": lambda: None,
        }
        self.upsamplers = ends[resample]()

    def __call__(
        self,
        x: Array,
        results: list[Array],
        embedding: Array,
        text: Array | None,
        regularization: Regularization | None = None,
    ) -> Array:
        for i, resnet in enumerate(self.resnets):
            x = resnet(jnp.concatenate([x, results.pop()], axis=-1), embedding, regularization=regularization)
            x = x if self.attentions is None else self.attentions[i](x, text)
        return x if self.upsamplers is None else resampled(self.upsamplers[0], x, embedding, regularization)


def resampled(layer: nnx.Module, x: Array, embedding: Array, regularization: Regularization | None) -> Array:
    """Halved or doubled, by a residual block or by a convolution."""
    return layer(x, embedding, regularization=regularization) if isinstance(layer, ResnetBlock) else layer(x)


def residual_blocks(levels: Sequence[nnx.Module]) -> list[ResnetBlock]:
    """Those of levels, in the order in which they are walked through: what halves or doubles ends its level."""
    inside = lambda level: [part for _, part in nnx.iter_graph(level) if isinstance(part, ResnetBlock)]
    return [block for level in levels for block in sorted(inside(level), key=lambda block: bool(block.resample))]


class TransformerBlock(nnx.Module):
    """Tokens [B, N, width] attend to one another, then to the text, then pass two layers; each added to what was.

    With `text_alone`, they attend to the text twice; without a text, to one another twice."""

    def __init__(self, width: int, heads: int, text_width: int, compute: Compute, *, text_alone: bool, rngs: nnx.Rngs):
        self.text_alone = text_alone
        norm = lambda: nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, dtype=compute.dtype, rngs=rngs)
        self.norm1, self.norm2, self.norm3 = norm(), norm(), norm()
        first = text_width if text_alone else None
        self.attn1 = Attention(width, heads, width // heads, compute, context_width=first, rngs=rngs)
        self.attn2 = Attention(width, heads, width // heads, compute, context_width=text_width, rngs=rngs)
        self.ff = FeedForward(width, "geglu", compute, rngs=rngs)

    def __call__(self, x: Array, text: Array | None) -> Array:
        x = x + self.attn1(self.norm1(x), text if self.text_alone else None)
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class PixelTransformer(nnx.Module):
    """Transformer blocks over the pixels of [B, H, W, C], added to them; each pixel enters and leaves by a product,
    which is stored as a convolution unless `linear`."""

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int,
        text_width: int,
        compute: Compute,
        *,
        groups: int,
        linear: bool,
        text_alone: bool = False,
        rngs: nnx.Rngs,
    ):
        if channels % heads:
            raise ValueError(f"attention_head_dim: {heads} heads do not divide {channels} channels")
        product = Linear if linear else lambda i, o, **options: Conv(i, o, (1, 1), **options)
        self.norm = GroupNorm(channels, groups, 1e-6)
        self.proj_in = product(channels, channels, dtype=compute.dtype, rngs=rngs)
        make = lambda rngs: TransformerBlock(channels, heads, text_width, compute, text_alone=text_alone, rngs=rngs)
        self.transformer_blocks = Stack(make, depth, compute, rngs=rngs)
        self.proj_out = product(channels, channels, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Array, text: Array | None) -> Array:
        b, h, w, c = x.shape
        tokens = along_batch(self.proj_in(self.norm(x))).reshape(b, h * w, c)
        return x + self.proj_out(along_batch(self.transformer_blocks(tokens, text).reshape(x.shape)))
