"""DiT: a transformer over patches with adaLN-Zero modulation (Peebles & Xie, 2212.09748); SiT is the same network.

Tokens are linear images of squares of patch x patch pixels plus fixed two-dimensional sinusoids of their position;
or, with rotary positions (2403.13298), positions turn queries and keys instead.
With e the vector of the timestep and the class, and (b1, a1, g1, b2, a2, g2) a linear image of silu(e) that starts at
zero, so that every block starts as the identity:

    x = x + g1 * attention(norm(x) * (1 + a1) + b1);   x = x + g2 * mlp(norm(x) * (1 + a2) + b2)

The norm is a layer norm without parameters. The last layer is modulated alike and starts at zero.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.models.ambient import along_context
from jdiff.models.attention import FULL, Mixing
from jdiff.models.compute import PLAIN, Compute, Stack
from jdiff.models.embeddings import TimestepEmbedding, rotary_angles, sincos_positions, timesteps
from jdiff.models.layers import ZERO, check_label, check_size, depth_to_space
from jdiff.models.products import Conv, Linear
from jdiff.models.regularize import Regularization
from jdiff.models.transformer import Attention, FeedForward, layer_norm
from jdiff.typing import Array, Cond


@dataclass(frozen=True, kw_only=True)
class DiT:
    """A DiT, with the fields of diffusers' DiTTransformer2DModel; the defaults are DiT-XL/2.

    The published sizes, as layers, heads and width of a head: S 12, 6, 64; B 12, 12, 64; L 24, 16, 64; XL 28, 16, 72.
    Images are [B, H, W, in_channels], H and W multiples of `divisor`. Raises ValueError for an impossible width.
    """

    published: ClassVar[str] = "DiTTransformer2DModel"
    # Of training, of no layer, and of the softmax, which is in float32 anyway.
    ignored: ClassVar[frozenset] = frozenset({"dropout", "norm_num_groups", "upcast_attention"})
    fixed: ClassVar[dict] = {
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "activation_fn": "gelu-approximate",
    }
    # What the published class has not: only a DiT with the defaults of these can be saved as one.
    beyond: ClassVar[frozenset] = frozenset({"attention", "positions"})

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    """Width of a head; heads times this is the width of a token, a multiple of 4."""
    in_channels: int = 4
    out_channels: int | None = None
    """`in_channels` if None; twice that where the network also says a variance."""
    num_layers: int = 28
    attention_bias: bool = True
    sample_size: int = 32
    """Edge of the images that positions are scaled for."""
    patch_size: int = 2
    num_embeds_ada_norm: int = 1000
    """Classes; 0 for none."""
    norm_eps: float = 1e-5
    attention: Mixing = FULL
    """Which tokens attend to which."""
    positions: Literal["sincos", "rope"] = "sincos"
    """Added to the tokens as sinusoids, or turning queries and keys."""
    compute: Compute = PLAIN

    def __post_init__(self):
        if self.width % 4 or self.width < 4:
            raise ValueError(
                f"width: num_attention_heads={self.num_attention_heads} times attention_head_dim="
                f"{self.attention_head_dim} is not a multiple of 4"
            )
        if self.positions not in ("sincos", "rope"):
            raise ValueError(f"positions: {self.positions!r} is not sincos or rope")
        if self.positions == "rope" and self.attention_head_dim % 4:
            raise ValueError(f"attention_head_dim: {self.attention_head_dim} is not a multiple of 4, as rope wants it")

    @property
    def width(self) -> int:
        """Of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def divisor(self) -> int:
        """What the edge of the images must be a multiple of."""
        return self.patch_size * self.attention.divisor

    def for_images(
        self, *, size: int, channels: int, out_channels: int, num_classes: int
    ) -> Callable[[nnx.Rngs], nnx.Module]:
        """What makes this network for other images and classes."""
        fields = {"in_channels": channels, "out_channels": out_channels, "num_embeds_ada_norm": num_classes}
        return dataclasses.replace(self, sample_size=size, **fields).module

    def module(self, rngs: nnx.Rngs) -> "DiTModule":
        """(x [B, H, W, in_channels], timestep [B], {"label": integers [B]}) -> [B, H, W, out_channels]."""
        return DiTModule(self, rngs=rngs)


class Embedder(nnx.Module):
    """The vector [B, width] of the timestep and, with classes, the label."""

    def __init__(self, config: DiT, *, rngs: nnx.Rngs):
        self.num_classes, width = config.num_embeds_ada_norm, config.width
        self.timestep_embedder = TimestepEmbedding(256, width, config.compute, rngs=rngs)
        if self.num_classes:
            self.class_embedder = Labels(self.num_classes + 1, width, rngs=rngs)

    def __call__(self, timestep: Array, cond: Cond) -> Array:
        check_label(cond, self.num_classes)
        embedding = self.timestep_embedder(timesteps(timestep, 256))
        return embedding + self.class_embedder(cond["label"]) if self.num_classes else embedding


class Labels(nnx.Module):
    """Integers [B] -> [B, width]. A label that is too great gives NaN, never another class."""

    def __init__(self, count: int, width: int, *, rngs: nnx.Rngs):
        scale = nnx.initializers.normal(0.02)
        self.embedding_table = nnx.Embed(count, width, embedding_init=scale, rngs=rngs)

    def __call__(self, label: Array) -> Array:
        return self.embedding_table(label)


class Modulation(nnx.Module):
    """The six parts [B, 1, 1, width] that modulate a block."""

    def __init__(self, width: int, compute: Compute, *, rngs: nnx.Rngs):
        self.linear = Linear(width, 6 * width, kernel_init=ZERO, dtype=compute.dtype, rngs=rngs)

    def __call__(self, embedding: Array) -> list[Array]:
        return jnp.split(self.linear(jax.nn.silu(embedding))[:, None, None], 6, axis=-1)


class Block(nnx.Module):
    """Attention and a two-layer network on [B, H, W, width], both modulated and gated by `embedding` [B, width].

    The number of the block passes beside x and is counted up."""

    def __init__(self, config: DiT, *, rngs: nnx.Rngs):
        width, compute, self.eps, self.blocks = config.width, config.compute, config.norm_eps, config.num_layers
        self.norm1 = Modulation(width, compute, rngs=rngs)
        self.attn1 = Attention(
            width,
            config.num_attention_heads,
            config.attention_head_dim,
            compute,
            bias=config.attention_bias,
            mixing=config.attention,
            rngs=rngs,
        )
        self.ff = FeedForward(width, "gelu-approximate", compute, rngs=rngs)

    def __call__(
        self,
        state: tuple[Array, Array],
        embedding: Array,
        angles: np.ndarray | None,
        regularization: Regularization | None,
    ) -> tuple[Array, Array]:
        x, block = state
        left = lambda y, i: y if regularization is None else regularization.branch(y, block, self.blocks, i)
        b1, a1, g1, b2, a2, g2 = self.norm1(embedding)
        x = x + left(g1 * self.attn1(layer_norm(x) * (1 + a1) + b1, angles=angles), 0)
        x = x + left(g2 * self.ff(layer_norm(x, self.eps) * (1 + a2) + b2), 1)
        return x, block + 1


class Patches(nnx.Module):
    """[B, H, W, C] -> tokens [B, H/p, W/p, width], as a convolution of p x p with a stride of p."""

    def __init__(self, channels: int, width: int, patch: int, compute: Compute, *, rngs: nnx.Rngs):
        self.proj = Conv(
            channels, width, (patch, patch), strides=patch, padding="VALID", dtype=compute.dtype, rngs=rngs
        )

    def __call__(self, x: Array) -> Array:
        return self.proj(x)


class DiTModule(nnx.Module):
    """The network that a `DiT` describes."""

    def __init__(self, config: DiT, *, rngs: nnx.Rngs):
        width, patch, compute = config.width, config.patch_size, config.compute
        out = config.in_channels if config.out_channels is None else config.out_channels
        self.config = config
        self.embedder = Embedder(config, rngs=rngs)
        self.pos_embed = Patches(config.in_channels, width, patch, compute, rngs=rngs)
        self.transformer_blocks = Stack(lambda rngs: Block(config, rngs=rngs), config.num_layers, compute, rngs=rngs)
        last = {"kernel_init": ZERO, "dtype": compute.dtype, "rngs": rngs}
        self.proj_out_1 = Linear(width, 2 * width, **last)
        self.proj_out_2 = Linear(width, patch**2 * out, **last)

    def __call__(self, x: Array, timestep: Array, cond: Cond, regularization: Regularization | None = None) -> Array:
        config, dtype = self.config, x.dtype
        check_size(x, config.patch_size)
        embedding = self.embedder(timestep, cond).astype(config.compute.dtype)
        x = self.pos_embed(x)
        _, h, w, width = x.shape
        angles = None
        if config.positions == "rope":
            angles = rotary_angles(h, w, config.attention_head_dim, period=100.0)
        else:
            positions = sincos_positions(h, w, width, base=config.sample_size // config.patch_size)
            x = x + positions.astype(x.dtype)
        x, _ = self.transformer_blocks((along_context(x), jnp.int32(0)), embedding, angles, regularization)
        shift, scale = jnp.split(self.proj_out_1(jax.nn.silu(embedding))[:, None, None], 2, axis=-1)
        x = self.proj_out_2(layer_norm(x) * (1 + scale) + shift)
        return depth_to_space(x, config.patch_size).astype(dtype)
