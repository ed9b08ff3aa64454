"""MM-DiT, the transformer of Stable Diffusion 3 and 3.5 (Esser et al., 2403.03206).

Tokens of the image and of the text have weights of their own and one attention: queries, keys and values of both are
put behind one another. Both are modulated by the vector of the timestep and a pooled text embedding as in DiT
(adaLN-Zero). The last block gives the image alone. In 3.5, queries and keys are RMS-normalized over a head (`qk_norm`),
and some blocks have a second attention, of the image to itself alone (`dual_attention_layers`).
"""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.models.ambient import along_context
from jdiff.models.attention import attend
from jdiff.models.compute import PLAIN, Compute, Stack
from jdiff.models.dit import Patches
from jdiff.models.embeddings import TimestepEmbedding, sincos_positions, timesteps
from jdiff.models.functional import Constant
from jdiff.models.layers import ZERO, check_size, depth_to_space
from jdiff.models.products import Linear
from jdiff.models.transformer import FeedForward, layer_norm, merge_heads, split_heads
from jdiff.typing import Array, Cond


@dataclass(frozen=True, kw_only=True)
class MMDiT:
    """An MM-DiT, with the fields and defaults of diffusers' SD3Transformer2DModel.

    Images are [B, H, W, in_channels], H and W multiples of `patch_size` and at most `pos_embed_max_size` patches.
    Raises ValueError for widths that do not fit together.
    """

    published: ClassVar[str] = "SD3Transformer2DModel"
    fixed: ClassVar[dict] = {}

    sample_size: int = 128
    """Edge of the images that positions are scaled for."""
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    """Width of the text's embeddings."""
    caption_projection_dim: int = 1152
    """Width of a token of the text inside; must be heads times width of a head."""
    pooled_projection_dim: int = 2048
    out_channels: int | None = 16
    pos_embed_max_size: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None
    """None or "rms_norm"."""
    compute: Compute = PLAIN

    def __post_init__(self):
        if self.caption_projection_dim != self.width:
            raise ValueError(
                f"caption_projection_dim: {self.caption_projection_dim} is not num_attention_heads="
                f"{self.num_attention_heads} times attention_head_dim={self.attention_head_dim}"
            )
        if self.qk_norm not in (None, "rms_norm"):
            raise ValueError(f"qk_norm: {self.qk_norm!r} is not rms_norm or None")
        outside = [layer for layer in self.dual_attention_layers if not 0 <= layer < self.num_layers]
        if outside:
            raise ValueError(f"dual_attention_layers: {outside} do not exist, there are 0 to {self.num_layers - 1}")

    @property
    def width(self) -> int:
        """Of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def divisor(self) -> int:
        """What the edges of the images must be multiples of."""
        return self.patch_size

    def positions(self) -> np.ndarray:
        """[pos_embed_max_size, pos_embed_max_size, width]: an image takes the middle of it."""
        edge, base = self.pos_embed_max_size, self.sample_size // self.patch_size
        return sincos_positions(edge, edge, self.width, base=base)

    def constants(self) -> dict[str, Constant]:
        """What diffusers stores beside the parameters."""
        shape = (1, self.pos_embed_max_size**2, self.width)
        return {"pos_embed.pos_embed": Constant(shape, lambda: self.positions().reshape(shape))}

    def conditions(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """What it takes of an example, whose caption is `tokens` long: shapes by name."""
        return {"text": (tokens, self.joint_attention_dim), "pooled": (self.pooled_projection_dim,)}

    def for_images(
        self, *, size: int, channels: int, out_channels: int, num_classes: int
    ) -> Callable[[nnx.Rngs], nnx.Module]:
        """What makes this network for other images. Raises ValueError for classes, of which it has none, and for
        images larger than its table of positions."""
        if num_classes:
            raise ValueError(f"num_classes: an MMDiT takes captions and no classes, got {num_classes}")
        if size > self.patch_size * self.pos_embed_max_size:
            raise ValueError(
                f"size: {size} is more than pos_embed_max_size={self.pos_embed_max_size} patches of {self.patch_size}"
            )
        fields = {"in_channels": channels, "out_channels": out_channels}
        return dataclasses.replace(self, sample_size=size, **fields).module

    def module(self, rngs: nnx.Rngs) -> "MMDiTModule":
        """(x [B, H, W, in_channels], timestep [B], {"text": [B, N, joint_attention_dim], "pooled":
        [B, pooled_projection_dim]}) -> [B, H, W, out_channels]."""
        return MMDiTModule(self, rngs=rngs)


class Modulation(nnx.Module):
    """[B, width] -> `parts` vectors [B, 1, width]; all of them start at zero."""

    def __init__(self, width: int, parts: int, compute: Compute, *, rngs: nnx.Rngs):
        self.parts = parts
        self.linear = Linear(width, parts * width, kernel_init=ZERO, dtype=compute.dtype, rngs=rngs)

    def __call__(self, embedding: Array) -> list[Array]:
        return jnp.split(self.linear(jax.nn.silu(embedding))[:, None], self.parts, axis=-1)


class JointAttention(nnx.Module):
    """Attention of image tokens, or of those and text tokens with weights of their own, to all of them."""

    def __init__(self, config: MMDiT, *, text: bool, text_out: bool, rngs: nnx.Rngs):
        width, compute = config.width, config.compute
        linear = lambda: Linear(width, width, dtype=compute.dtype, rngs=rngs)
        norm = lambda: nnx.RMSNorm(config.attention_head_dim, epsilon=1e-6, dtype=compute.dtype, rngs=rngs)
        self.heads, qk = config.num_attention_heads, config.qk_norm is not None
        self.to_q, self.to_k, self.to_v, self.to_out = linear(), linear(), linear(), linear()
        self.norm_q, self.norm_k = (norm(), norm()) if qk else (None, None)
        if text:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = linear(), linear(), linear()
            self.norm_added_q, self.norm_added_k = (norm(), norm()) if qk else (None, None)
        self.to_add_out = linear() if text_out else None

    def __call__(self, x: Array, text: Array | None = None) -> tuple[Array, Array | None]:
        layers = [(self.to_q, self.norm_q), (self.to_k, self.norm_k), (self.to_v, None)]
        q, k, v = (self._heads(layer, norm, x) for layer, norm in layers)
        if text is not None:
            added = [
                (self.add_q_proj, self.norm_added_q),
                (self.add_k_proj, self.norm_added_k),
                (self.add_v_proj, None),
            ]
            parts = (self._heads(layer, norm, text) for layer, norm in added)
            q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip((q, k, v), parts, strict=True))
        mixed = merge_heads(attend(q, k, v))
        told = None if self.to_add_out is None else self.to_add_out(mixed[:, x.shape[1] :])
        return self.to_out(mixed[:, : x.shape[1]]), told

    def _heads(self, layer: Linear, norm: nnx.RMSNorm | None, x: Array) -> Array:
        parts = split_heads(layer(x), self.heads)
        return parts if norm is None else norm(parts)


class JointBlock(nnx.Module):
    """(image tokens, text tokens) -> the same; the last block leaves the text as it was, and nobody reads it."""

    def __init__(self, config: MMDiT, *, dual: bool, last: bool, rngs: nnx.Rngs):
        width, compute = config.width, config.compute
        self.dual, self.last = dual, last
        self.norm1 = Modulation(width, 9 if dual else 6, compute, rngs=rngs)
        self.norm1_context = Modulation(width, 2 if last else 6, compute, rngs=rngs)
        self.attn = JointAttention(config, text=True, text_out=not last, rngs=rngs)
        self.attn2 = JointAttention(config, text=False, text_out=False, rngs=rngs) if dual else None
        self.ff = FeedForward(width, "gelu-approximate", compute, rngs=rngs)
        self.ff_context = None if last else FeedForward(width, "gelu-approximate", compute, rngs=rngs)

    def __call__(self, tokens: tuple[Array, Array], embedding: Array) -> tuple[Array, Array]:
        x, text = tokens
        b1, a1, g1, b2, a2, g2, *second = self.norm1(embedding)
        told = self.norm1_context(embedding)
        scale, shift = told if self.last else (told[1], told[0])
        normal = layer_norm(x)
        mixed, mixed_text = self.attn(normal * (1 + a1) + b1, layer_norm(text) * (1 + scale) + shift)
        x = x + g1 * mixed
        if self.attn2 is not None:
            b3, a3, g3 = second
            x = x + g3 * self.attn2(normal * (1 + a3) + b3)[0]
        x = x + g2 * self.ff(layer_norm(x) * (1 + a2) + b2)
        if self.ff_context is not None and mixed_text is not None:
            text = text + told[2] * mixed_text
            text = text + told[5] * self.ff_context(layer_norm(text) * (1 + told[4]) + told[3])
        return x, text


class TimeText(nnx.Module):
    """The vector [B, width] of the timestep and of the pooled text."""

    def __init__(self, config: MMDiT, *, rngs: nnx.Rngs):
        self.timestep_embedder = TimestepEmbedding(256, config.width, config.compute, rngs=rngs)
        self.text_embedder = TimestepEmbedding(config.pooled_projection_dim, config.width, config.compute, rngs=rngs)

    def __call__(self, timestep: Array, pooled: Array) -> Array:
        return self.timestep_embedder(timesteps(timestep, 256, shift=0)) + self.text_embedder(pooled)


class MMDiTModule(nnx.Module):
    """The network that an `MMDiT` describes."""

    def __init__(self, config: MMDiT, *, rngs: nnx.Rngs):
        width, patch, compute, self.config = config.width, config.patch_size, config.compute, config
        out = config.in_channels if config.out_channels is None else config.out_channels
        self.pos_embed = Patches(config.in_channels, width, patch, compute, rngs=rngs)
        self.time_text_embed = TimeText(config, rngs=rngs)
        self.context_embedder = Linear(config.joint_attention_dim, width, dtype=compute.dtype, rngs=rngs)
        kinds = [(i in config.dual_attention_layers, i == config.num_layers - 1) for i in range(config.num_layers)]
        runs = [(kind, [i for i, _ in run]) for kind, run in itertools.groupby(enumerate(kinds), lambda pair: pair[1])]
        # A stack for each run of equal blocks, by the number of its first.
        self.transformer_blocks = nnx.Dict(
            {
                str(numbers[0]): Stack(
                    lambda rngs, dual=dual, last=last: JointBlock(config, dual=dual, last=last, rngs=rngs),
                    len(numbers),
                    compute,
                    rngs=rngs,
                )
                for (dual, last), numbers in runs
            }
        )
        self.norm_out = Modulation(width, 2, compute, rngs=rngs)
        self.proj_out = Linear(width, patch**2 * out, kernel_init=ZERO, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Array, timestep: Array, cond: Cond) -> Array:
        config, dtype = self.config, x.dtype
        if set(cond) != {"text", "pooled"}:
            raise ValueError(f"cond: got {sorted(cond)}, this network takes ['pooled', 'text']")
        check_size(x, config.patch_size)
        embedding = self.time_text_embed(timestep, cond["pooled"]).astype(config.compute.dtype)
        x = self.pos_embed(x)
        b, h, w, width = x.shape
        x = (x + self._positions(h, w).astype(x.dtype)).reshape(b, h * w, width)
        tokens = (along_context(x), along_context(self.context_embedder(cond["text"])))
        for first in sorted(self.transformer_blocks, key=int):
            tokens = self.transformer_blocks[first](tokens, embedding)
        scale, shift = self.norm_out(embedding)
        x = self.proj_out(layer_norm(tokens[0]) * (1 + scale) + shift)
        return depth_to_space(x.reshape(b, h, w, -1), config.patch_size).astype(dtype)

    def _positions(self, height: int, width: int) -> np.ndarray:
        edge = self.config.pos_embed_max_size
        if max(height, width) > edge:
            raise ValueError(f"x: {height} x {width} patches, at most pos_embed_max_size={edge} either way")
        top, left = (edge - height) // 2, (edge - width) // 2
        return self.config.positions()[top : top + height, left : left + width]
