"""From the density of real values to the probability of integers.

A value k that stands for the cell of width w about x has P(x) = integral of p over the cells, D of them at once. With z
in the cells drawn from q(z | x),

    log P(x) >= E_q [log p(z) - log q(z | x)],    and    P(x) = E_q [p(z) / q(z | x)].

Uniform dequantization (Theis et al. 2016, arXiv:1511.01844) has q = w^-D. Variational dequantization (Ho et al. 2019,
arXiv:1902.00275) learns q, and is exact for every draw when q(z | x) = p(z) / P(x).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdiff import rng
from jdiff.processes.base import require
from jdiff.typing import Array, Key


class Dequantized(NamedTuple):
    """Real values in the cells, and how likely they were drawn there."""

    x: Array  # [B, ...]
    log_q: Array  # [B] nats


def dequantize_uniformly(keys: Key, x: Array, width: float | Array) -> Dequantized:
    """x [B, ...] plus noise uniform in the cells of `width` about it, row b from keys[b] alone.

    For bytes scaled to [-1, 1] the width is 2 / 255. Raises ValueError for a width that is not positive.
    """
    draw = lambda key: jax.random.uniform(key, x.shape[1:], x.dtype)
    unit = jax.vmap(draw)(rng.named(keys, "dequantize"))
    return _placed(x, unit, jnp.zeros(x.shape[0], x.dtype), width)


def dequantize_variationally(
    keys: Key, x: Array, width: float | Array, flow: Callable[[Array, Array], tuple[Array, Array]]
) -> Dequantized:
    """x [B, ...] plus noise drawn by a flow, row b's from keys[b] alone.

    `flow(eps [B, ...], x)` takes standard normal noise one to one to places [B, ...] in (0, 1) within the cells, and
    returns them with its log determinants [B]; `logit_normal` is one. Raises ValueError for other shapes or a width
    that is not positive.
    """
    eps = rng.normal(rng.named(keys, "dequantize"), x)
    unit, log_det = flow(eps, x)
    if unit.shape != x.shape or log_det.shape != x.shape[:1]:
        raise ValueError(f"flow must return shapes {x.shape} and {x.shape[:1]}, got {unit.shape} and {log_det.shape}")
    log_normal = jnp.sum(jax.scipy.stats.norm.logpdf(eps), axis=tuple(range(1, x.ndim)))
    return _placed(x, unit, log_normal - log_det, width)


def logit_normal(eps: Array, shift: Array, log_scale: Array) -> tuple[Array, Array]:
    """sigmoid(shift + exp(log_scale) eps), [B, ...], and its log determinant in eps, [B].

    A `flow` is this with the shift and the scale that a network makes of x; they broadcast against eps.
    """
    logit = shift + jnp.exp(log_scale) * eps
    log_slope = log_scale + jax.nn.log_sigmoid(logit) + jax.nn.log_sigmoid(-logit)
    return jax.nn.sigmoid(logit), jnp.sum(log_slope, axis=tuple(range(1, eps.ndim)))


def bits_per_dim(log_density: Array, dequantized: Dequantized) -> Array:
    """-(log p(z) - log q(z | x)) / (D log 2), [B]: an upper bound, in expectation, of the integers' bits a value."""
    size = dequantized.x[0].size
    return (dequantized.log_q - log_density) / (size * jnp.log(jnp.asarray(2, log_density.dtype)))


def _placed(x: Array, unit: Array, log_q_unit: Array, width: float | Array) -> Dequantized:
    width = jnp.asarray(width, x.dtype)
    require(width > 0, f"width must be positive, got {width}")
    return Dequantized(x + width * (unit - 0.5), log_q_unit - x[0].size * jnp.log(width))
