"""Levels of NCSN++ (score_sde, 2011.13456): as those of a U-Net, with a small picture of the image beside them.

Down, the image is halved by a filter and added to the features of each level; up, each level adds to a picture that is
doubled in between, and what comes out is that picture. All sums are divided by sqrt(2).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.convolution import GroupNorm, PixelAttention, ResnetBlock, conv, fir_double, fir_halve
from jdiff.models.regularize import Regularization
from jdiff.models.unet_blocks import Parts
from jdiff.typing import Array

SCALE = math.sqrt(2)
PICTURE = 3  # channels of the picture, whatever the image has


def _resnet(parts: Parts, channels: int, out: int, groups: int, rngs: nnx.Rngs, resample: str = "") -> ResnetBlock:
    return ResnetBlock(
        channels,
        out,
        parts.compute,
        embedding_width=parts.embedding_width,
        groups=groups,
        groups_out=min(out // 4, 32),
        eps=parts.eps,
        scale_shift=parts.scale_shift,
        resample=resample,
        output_scale=SCALE,
        shortcut=bool(resample),
        rngs=rngs,
    )


def _attention(parts: Parts, channels: int, heads: int, rngs: nnx.Rngs) -> PixelAttention:
    return PixelAttention(channels, heads, parts.compute, groups=32, eps=parts.eps, output_scale=SCALE, rngs=rngs)


class SkipDown(nnx.Module):
    """(x, embedding, picture, regularization) -> x, the results on the way, the picture; `heads` 0 is for no
    attention."""

    def __init__(
        self, parts: Parts, channels: int, out: int, depth: int, *, heads: int, resample: bool, rngs: nnx.Rngs
    ):
        widths = [channels] + [out] * (depth - 1)
        self.resnets = nnx.List([_resnet(parts, width, out, min(width // 4, 32), rngs) for width in widths])
        self.attentions = nnx.List([_attention(parts, out, heads, rngs) for _ in widths]) if heads else None
        down = lambda: _resnet(parts, out, out, min(out // 4, 32), rngs, "fir_down")
        self.resnet_down = down() if resample else None
        self.skip_conv = conv(PICTURE, out, parts.compute, size=1, rngs=rngs) if resample else None

    def __call__(
        self, x: Array, embedding: Array, picture: Array, regularization: Regularization | None
    ) -> tuple[Array, list[Array], Array]:
        results = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, embedding, regularization=regularization)
            x = x if self.attentions is None else self.attentions[i](x)
            results.append(x)
        if self.resnet_down is not None and self.skip_conv is not None:
            picture = fir_halve(picture)
            x = self.skip_conv(picture) + self.resnet_down(x, embedding, regularization=regularization)
            results.append(x)
        return x, results, picture


class SkipUp(nnx.Module):
    """(x, results, embedding, picture, regularization) -> x, picture, which is None before the first; attention comes
    once, last."""

    def __init__(
        self,
        parts: Parts,
        channels: int,
        skips: Sequence[int],
        out: int,
        *,
        heads: int,
        resample: bool,
        rngs: nnx.Rngs,
    ):
        widths = [channels] + [out] * (len(skips) - 1)
        # With attention, the published groups are those of w + s // 4.
        groups = [min(w + s // 4 if heads else (w + s) // 4, 32) for w, s in zip(widths, skips, strict=True)]
        self.resnets = nnx.List(
            [_resnet(parts, w + s, out, g, rngs) for w, s, g in zip(widths, skips, groups, strict=True)]
        )
        self.attentions = nnx.List([_attention(parts, out, heads, rngs)]) if heads else None
        up = lambda: _resnet(parts, out, out, min(out // 4, 32), rngs, "fir_up")
        self.resnet_up = up() if resample else None
        self.skip_norm = GroupNorm(out, min(out // 4, 32), parts.eps) if resample else None
        self.skip_conv = conv(out, PICTURE, parts.compute, rngs=rngs) if resample else None

    def __call__(
        self,
        x: Array,
        results: list[Array],
        embedding: Array,
        picture: Array | None,
        regularization: Regularization | None,
    ) -> tuple[Array, Array | None]:
        for resnet in self.resnets:
            x = resnet(jnp.concatenate([x, results.pop()], axis=-1), embedding, regularization=regularization)
        x = x if self.attentions is None else self.attentions[0](x)
        picture = None if picture is None else fir_double(picture)
        if self.resnet_up is None or self.skip_conv is None or self.skip_norm is None:
            return x, picture
        drawn = self.skip_conv(jax.nn.silu(self.skip_norm(x)))
        x = self.resnet_up(x, embedding, regularization=regularization)
        return x, drawn if picture is None else picture + drawn
