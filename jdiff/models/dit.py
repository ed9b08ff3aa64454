"""DiT: a transformer over patches with adaLN-Zero modulation (Peebles & Xie, 2212.09748).

Tokens are linear images of squares of patch x patch pixels plus fixed two-dimensional sinusoids of their position.
With e the vector of the noise label and the class, and (a1, b1, g1, a2, b2, g2) a linear image of e that starts at
zero, so that every block starts as the identity:

    x = x + g1 * attention(norm(x) * (1 + a1) + b1);   x = x + g2 * mlp(norm(x) * (1 + a2) + b2)

The norm is a layer norm without parameters. The last layer is modulated alike and starts at zero.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.layers import ZERO, Attention, Conditioning, depth_to_space, positions, space_to_depth
from jdiff.typing import Array, Cond


@dataclass(frozen=True, kw_only=True)
class DiT:
    """The shape of a DiT; plain values.

    Raises `ValueError` for an impossible width.
    """

    patch: int = 2
    """Edge of the square of pixels that is one token."""
    width: int = 192
    """Of a token; a multiple of 4 and of `heads`."""
    depth: int = 6
    """Number of blocks."""
    heads: int = 6
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden width of a block's two-layer network, in units of `width`."""

    def __post_init__(self):
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width: {self.width} is not a multiple of 4 and of heads={self.heads}")

    @property
    def divisor(self) -> int:
        """What the edge of the images must be a multiple of."""
        return self.patch

    def module(self, rngs: nnx.Rngs, *, channels: int, out_channels: int, num_classes: int) -> nnx.Module:
        """The module from images of `channels` channels to `out_channels`."""
        return DiTModule(self, channels, out_channels, num_classes, rngs=rngs)


class Block(nnx.Module):
    """Attention and a two-layer network on [B, N, width], both modulated and gated by `embedding` [B, width]."""

    def __init__(self, config: DiT, *, rngs: nnx.Rngs):
        width = config.width
        self.modulation = nnx.Linear(width, 6 * width, kernel_init=ZERO, rngs=rngs)
        self.attention = Attention(width, config.heads, zero=False, rngs=rngs)
        self.widen = nnx.Linear(width, config.mlp_ratio * width, rngs=rngs)
        self.narrow = nnx.Linear(config.mlp_ratio * width, width, rngs=rngs)

    def __call__(self, x: Array, embedding: Array) -> Array:
        a1, b1, g1, a2, b2, g2 = jnp.split(self.modulation(embedding)[:, None], 6, axis=-1)
        x = x + g1 * self.attention(layer_norm(x) * (1.0 + a1) + b1)
        return x + g2 * self.narrow(jax.nn.gelu(self.widen(layer_norm(x) * (1.0 + a2) + b2)))


class DiTModule(nnx.Module):
    """The network that a `DiT` describes."""

    def __init__(self, config: DiT, channels: int, out_channels: int, num_classes: int, *, rngs: nnx.Rngs):
        width, pixels = config.width, config.patch**2
        self.patch = config.patch
        self.conditioning = Conditioning(width, num_classes, rngs=rngs)
        self.enter = nnx.Linear(channels * pixels, width, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=ZERO, rngs=rngs)
        self.leave = nnx.Linear(width, out_channels * pixels, kernel_init=ZERO, rngs=rngs)

    def __call__(self, x: Array, noise_label: Array, cond: Cond) -> Array:
        embedding = self.conditioning(noise_label, cond)
        x = self.enter(space_to_depth(x, self.patch))
        b, h, w, width = x.shape
        x = (x + positions(h, w, width)).reshape(b, h * w, width)
        for block in self.blocks:
            x = block(x, embedding)
        scale, shift = jnp.split(self.modulation(embedding)[:, None], 2, axis=-1)
        x = self.leave(layer_norm(x) * (1.0 + scale) + shift)
        return depth_to_space(x.reshape(b, h, w, -1), self.patch)


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """Zero mean and unit variance over the last axis, without parameters."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
