"""Sinusoids of noise labels and of positions, and the vectors made of them.

- Timesteps (DDPM, 2006.11239): sin and cos of t w_k with w_k geometric from 1 to 1e-4.
- Positions (2-D, MAE 2111.06377, DiT 2212.09748): half the width says the column, half the row, each as sin and cos.
- Rotary positions (2104.09864; in 2-D 2403.13298): pairs of numbers of a query or a key are turned by angles that are
  proportional to the column (first half of the pairs) or to the row; then inner products depend on offsets alone.
- Fourier features (2006.10739): sin and cos of 2 pi t w with fixed random w.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.models.compute import Compute
from jdiff.models.products import Linear
from jdiff.typing import Array


def timesteps(t: Array, width: int, *, flip: bool = True, shift: float = 1.0, period: float = 10000.0) -> Array:
    """[...] -> [..., width], float32: sin and cos (cos first if `flip`) of t w_k.

    w_k = period^(-k / (width / 2 - shift)). An odd width ends with a zero."""
    half = width // 2
    frequencies = np.exp(-math.log(period) * np.arange(half, dtype=np.float32) / np.float32(half - shift))
    angles = t.astype(jnp.float32)[..., None] * frequencies
    parts = [jnp.cos(angles), jnp.sin(angles)] if flip else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate([*parts, jnp.zeros_like(angles[..., : width % 2])], axis=-1)


def sincos_positions(height: int, width: int, features: int, *, base: int, scale: float = 1.0) -> np.ndarray:
    """[height, width, features] float32 sinusoids of the column (first half) and of the row.

    Positions are spread so that `base` of them would lie one apart whatever the size of the picture, and divided by
    `scale`. Raises ValueError where `features` does not divide by 4.
    """
    if features % 4:
        raise ValueError(f"features: {features} is not a multiple of 4")
    frequencies = 10000.0 ** -(np.arange(features // 4) / (features // 4))

    def along(count: int) -> np.ndarray:
        places = np.arange(count, dtype=np.float32) / np.float32(count / base) / np.float32(scale)
        angles = places[:, None].astype(np.float64) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    columns = np.broadcast_to(along(width)[None], (height, width, features // 2))
    rows = np.broadcast_to(along(height)[:, None], (height, width, features // 2))
    return np.concatenate([columns, rows], axis=-1).astype(np.float32)


def rotary_angles(height: int, width: int, features: int, *, period: float) -> np.ndarray:
    """[height, width, features / 2] float64 angles for heads of so many features: places times period^(-k / (features
    / 4)), k = 0, 1, ... Raises ValueError where `features` does not divide by 4."""
    if features % 4:
        raise ValueError(f"features: {features} is not a multiple of 4")
    frequencies = period ** -(np.arange(features // 4) / (features // 4))
    rows, columns = (places[..., None] * frequencies for places in np.mgrid[:height, :width])
    return np.concatenate([columns, rows], axis=-1)


def rotated(x: Array, angles: np.ndarray) -> Array:
    """[B, ..., heads, d] turned by angles [..., d / 2]; a pair is a number of the first half of d and its like in the
    second. float32 or wider inside."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    cos, sin = (jnp.asarray(f(angles)[..., None, :], wide) for f in (np.cos, np.sin))
    first, second = jnp.split(x.astype(wide), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Fourier(nnx.Module):
    """Fourier features, [B] -> [B, 2 * width], with frequencies that are drawn once and not trained."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(16 * jax.random.normal(rngs(), (width,)))

    def __call__(self, t: Array) -> Array:
        angles = 2 * np.pi * t[:, None] * jax.lax.stop_gradient(self.weight[...])
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two dense layers with an activation between: [..., width_in] -> [..., width]. With a `cond_width`, a condition
    [..., cond_width] times a matrix is added before them."""

    def __init__(self, width_in: int, width: int, compute: Compute, *, cond_width: int | None = None, rngs: nnx.Rngs):
        self.linear_1 = Linear(width_in, width, dtype=compute.dtype, rngs=rngs)
        self.linear_2 = Linear(width, width, dtype=compute.dtype, rngs=rngs)
        plain = {"use_bias": False, "dtype": compute.dtype, "rngs": rngs}
        self.cond_proj = None if cond_width is None else Linear(cond_width, width_in, **plain)

    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        if self.cond_proj is not None and condition is not None:
            x = x + self.cond_proj(condition)
        return self.linear_2(jax.nn.silu(self.linear_1(x)))
