"""JiT: a plain transformer on large patches of pixels (Li & He, 2511.13720), made to predict x0.

A patch of p x p pixels, wider than a token may be, passes a bottleneck of two linear layers; fixed sinusoids of its
place are added. With e the vector of the timestep and the class, and (b1, a1, g1, b2, a2, g2) a linear image of silu(e)
that starts at zero (adaLN-Zero, 2212.09748), a block is

    x = x + g1 * attention(norm(x) * (1 + a1) + b1);   x = x + g2 * mlp(norm(x) * (1 + a2) + b2)

with RMS norms (1910.07467), SwiGLU (2002.05202), queries and keys RMS-normalized and turned by rotary positions.
The class comes in a second way: from block `context_start` on, some tokens of it, each with a learned vector
added, stand before those of the image and are left out at the end. Rotary positions do not turn them.

Why x0: images lie near a manifold of few dimensions and noise does not, so a token narrower than its patch can hold the
former alone. The paper trains it by the error of the velocity, x0 and process being those of rectified flow. Of its
published training, dropout in the middle blocks of the greatest sizes is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.models.ambient import along_context
from jdiff.models.compute import PLAIN, Compute, Stack
from jdiff.models.dit import Labels
from jdiff.models.embeddings import TimestepEmbedding, rotary_angles, sincos_positions, timesteps
from jdiff.models.layers import ZERO, check_label, depth_to_space, space_to_depth
from jdiff.models.mmdit import Modulation
from jdiff.models.products import Linear
from jdiff.models.regularize import Regularization
from jdiff.models.transformer import Attention, FeedForward
from jdiff.typing import Array, Cond


@dataclass(frozen=True, kw_only=True)
class JiT:
    """The shape of a JiT; the defaults are JiT-B/16.

    The published sizes, as layers, heads, width of a head, bottleneck and start of the context: B 12, 12, 64, 128, 4;
    L 24, 16, 64, 128, 8; H 32, 16, 80, 256, 10. Raises ValueError for an impossible combination.
    """

    patch_size: int = 16
    bottleneck: int = 128
    """Numbers that are left of a patch before it becomes a token."""
    num_layers: int = 12
    num_attention_heads: int = 12
    attention_head_dim: int = 64
    """Width of a head, a multiple of 4; heads times this is the width of a token."""
    context_tokens: int = 32
    """Tokens of the class."""
    context_start: int = 4
    """Blocks before those come."""
    compute: Compute = PLAIN

    def __post_init__(self):
        if self.attention_head_dim % 4 or self.attention_head_dim < 4:
            raise ValueError(f"attention_head_dim: {self.attention_head_dim} is not a multiple of 4")
        if not 0 < self.context_start < self.num_layers:
            raise ValueError(f"context_start: {self.context_start} is not between 0 and num_layers={self.num_layers}")

    @property
    def width(self) -> int:
        """Of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def divisor(self) -> int:
        """What the edge of the images must be a multiple of."""
        return self.patch_size

    def for_images(
        self, *, size: int, channels: int, out_channels: int, num_classes: int
    ) -> Callable[[nnx.Rngs], nnx.Module]:
        """What makes the module (x [B, H, W, channels], timestep [B], cond) -> [B, H, W, out_channels], whose positions
        are scaled for images of edge `size`."""
        return lambda rngs: JiTModule(self, size, channels, out_channels, num_classes, rngs=rngs)


class Block(nnx.Module):
    """Attention and a gated network on [B, N, width], both modulated and gated by `embedding` [B, width].

    The number of the block passes beside x and is counted up."""

    def __init__(self, config: JiT, *, rngs: nnx.Rngs):
        width, heads, compute = config.width, config.num_attention_heads, config.compute
        self.blocks = config.num_layers
        how = {"bias": True, "qk_norm": True, "rngs": rngs}
        self.modulation = Modulation(width, 6, compute, rngs=rngs)
        self.norm1, self.norm2 = (_norm(width, compute, rngs) for _ in range(2))
        self.attn = Attention(width, heads, config.attention_head_dim, compute, **how)
        self.ff = FeedForward(width, "swiglu", compute, rngs=rngs)

    def __call__(
        self,
        state: tuple[Array, Array],
        embedding: Array,
        angles: np.ndarray,
        regularization: Regularization | None,
    ) -> tuple[Array, Array]:
        x, block = state
        left = lambda y, i: y if regularization is None else regularization.branch(y, block, self.blocks, i)
        b1, a1, g1, b2, a2, g2 = self.modulation(embedding)
        x = x + left(g1 * self.attn(self.norm1(x) * (1 + a1) + b1, angles=angles), 0)
        x = x + left(g2 * self.ff(self.norm2(x) * (1 + a2) + b2), 1)
        return x, block + 1


def _norm(width: int, compute: Compute, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=1e-6, dtype=compute.dtype, rngs=rngs)


class Bottleneck(nnx.Module):
    """[B, H, W, C] -> tokens [B, H/p, W/p, width] by two linear layers without anything between."""

    def __init__(self, config: JiT, channels: int, *, rngs: nnx.Rngs):
        self.patch, dtype = config.patch_size, config.compute.dtype
        self.narrow = Linear(self.patch**2 * channels, config.bottleneck, use_bias=False, dtype=dtype, rngs=rngs)
        self.widen = Linear(config.bottleneck, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.widen(self.narrow(space_to_depth(x, self.patch)))


class JiTModule(nnx.Module):
    """The network that a `JiT` describes."""

    def __init__(self, config: JiT, size: int, channels: int, out_channels: int, num_classes: int, *, rngs: nnx.Rngs):
        width, compute = config.width, config.compute
        self.config, self.base, self.num_classes = config, size // config.patch_size, num_classes
        self.pos_embed = Bottleneck(config, channels, rngs=rngs)
        self.timestep_embedder = TimestepEmbedding(256, width, compute, rngs=rngs)
        if num_classes:
            places = 0.02 * nnx.initializers.normal(1.0)(rngs(), (config.context_tokens, width), jnp.float32)
            self.class_embedder, self.context = Labels(num_classes + 1, width, rngs=rngs), nnx.Param(places)
        stack = lambda depth: Stack(lambda rngs: Block(config, rngs=rngs), depth, compute, rngs=rngs)
        self.first_blocks = stack(config.context_start)
        self.last_blocks = stack(config.num_layers - config.context_start)
        self.norm_out, self.modulation_out = _norm(width, compute, rngs), Modulation(width, 2, compute, rngs=rngs)
        out = config.patch_size**2 * out_channels
        self.proj_out = Linear(width, out, kernel_init=ZERO, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Array, timestep: Array, cond: Cond, regularization: Regularization | None = None) -> Array:
        config, dtype, half = self.config, x.dtype, self.config.compute.dtype
        check_label(cond, self.num_classes)
        embedding = self.timestep_embedder(timesteps(timestep, 256))
        x = self.pos_embed(x)
        b, h, w, width = x.shape
        x = x + sincos_positions(h, w, width, base=self.base).astype(x.dtype)
        angles = rotary_angles(h, w, config.attention_head_dim, period=10000.0).reshape(h * w, -1)
        x, context = x.reshape(b, h * w, width), None
        if self.num_classes:
            label = self.class_embedder(cond["label"])
            embedding, context = embedding + label, label[:, None] + self.context[...]
        embedding = embedding.astype(half)
        x, block = self.first_blocks((along_context(x), jnp.int32(0)), embedding, angles, regularization)
        if context is not None:
            x = jnp.concatenate([context.astype(half), x], axis=1)
            angles = np.pad(angles, ((config.context_tokens, 0), (0, 0)))
        x = self.last_blocks((along_context(x), block), embedding, angles, regularization)[0][:, -h * w :]
        shift, scale = self.modulation_out(embedding)
        x = self.proj_out(self.norm_out(x) * (1 + scale) + shift)
        return depth_to_space(x.reshape(b, h, w, -1), config.patch_size).astype(dtype)
