"""Layers that several networks share.

- Space to depth: [B, H, W, C] <-> [B, H/p, W/p, p*p*C]; a network on patches sees p*p times fewer positions.
- RMS normalization over channels, x / sqrt(mean(x^2) + eps) (Zhang & Sennrich, 1910.07467): per position, so one
  fused pass over memory, where group normalization needs several and mixes all positions of a sample.
- Modulation by a vector e of the sample (Perez et al., 1709.07871; DiT, 2212.09748): x * (1 + a(e)) + b(e).
- Timestep t: sinusoids (DDPM, 2006.11239), then two dense layers; a class label adds an embedding (ADM, 2105.05233),
  and one more class than the data has stands for "no label" (classifier-free guidance, 2207.12598).

All of it computes in float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.attention import attend_pixels
from jdiff.models.embeddings import timesteps
from jdiff.models.products import Linear
from jdiff.typing import Array, Cond

ZERO = nnx.initializers.zeros_init()


def space_to_depth(x: Array, patch: int) -> Array:
    """[B, H, W, C] -> [B, H/patch, W/patch, patch*patch*C]. Raises ValueError where the patch does not divide."""
    check_size(x, patch)
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Array, patch: int) -> Array:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * patch, w * patch, c // patch**2)


def rms_norm(x: Array, eps: float = 1e-6) -> Array:
    """x / sqrt(mean over the last axis of x^2 + eps), without parameters."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


class Conditioning(nnx.Module):
    """(timestep [B], cond) -> the vector [B, width] that modulates every block.

    With `num_classes` > 0, `cond` is `{"label": integers [B]}`, label == num_classes meaning no label; otherwise it
    is empty. Anything else is a `ValueError`. A label above num_classes gives NaN, never another class.
    """

    def __init__(self, width: int, num_classes: int, *, rngs: nnx.Rngs):
        self.frequencies, self.num_classes = 256, num_classes
        self.noise = Linear(self.frequencies, width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        if num_classes:
            scale = nnx.initializers.normal(1.0)
            self.label = nnx.Embed(num_classes + 1, width, embedding_init=scale, rngs=rngs)

    def __call__(self, timestep: Array, cond: Cond) -> Array:
        check_label(cond, self.num_classes)
        hidden = self.noise(timesteps(timestep, self.frequencies))
        if self.num_classes:
            hidden = hidden + self.label(cond["label"])
        return jax.nn.silu(self.out(jax.nn.silu(hidden)))


def check_label(cond: Cond, num_classes: int) -> None:
    """Raises ValueError unless `cond` is what a network with so many classes takes: {"label": integers [B]}, label ==
    num_classes meaning none, or nothing where there are no classes."""
    wanted = {"label"} if num_classes else set()
    if set(cond) != wanted:
        raise ValueError(f"cond: got {sorted(cond)}, a network with {num_classes} classes takes {sorted(wanted)}")
    if wanted and not jnp.issubdtype(cond["label"].dtype, jnp.integer):
        raise ValueError(f"cond['label']: integers wanted, got {cond['label'].dtype}")


def check_size(x: Array, divisor: int) -> None:
    """Raises ValueError unless both edges of [B, H, W, C] are multiples of the divisor."""
    if x.shape[1] % divisor or x.shape[2] % divisor:
        raise ValueError(f"x: {x.shape[1]} x {x.shape[2]} pixels, both must be multiples of {divisor}")


class SelfAttention(nnx.Module):
    """Self-attention over all positions, [B, N, width] -> [B, N, width]; `zero` starts it at 0.

    Queries and keys are RMS-normalized over the width of a head, which bounds the logits (2302.05442).
    """

    def __init__(self, width: int, heads: int, *, zero: bool, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = Linear(width, 3 * width, use_bias=False, rngs=rngs)
        out_init = ZERO if zero else nnx.initializers.lecun_normal()
        self.out = Linear(width, width, kernel_init=out_init, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        b, n, width = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        mixed = attend_pixels(rms_norm(q), rms_norm(k), v)
        return self.out(mixed.reshape(b, n, width))
