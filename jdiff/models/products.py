"""Linear layers and convolutions, computed as the platform does them fastest.

All are the same sums. On a CPU, XLA runs products of two matrices at full speed, and little else:

- A linear layer of [B, ..., C] is one product of [B * ..., C]; with several axes its slope by the weights is not.
- A convolution of 1 x 1 is that linear layer.
- A convolution of k x k is one product as well. On the side of x, the k pixels that a row of the kernel meets lie
  side by side; on the side of the result, so do what the k rows of the kernel make of them, which are then shifted
  and added. So 2 k numbers a pixel and channel are written, where k * k pixels side by side would be k * k.
- With a stride, when most of what the rows make would be thrown away, k * k pixels lie side by side.

Elsewhere XLA's own operations are used: there, axes may lie on different devices, and convolutions have kernels.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.typing import Array


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    """`jax.lax.dot_general` of the last axis of x [..., C] with the first of a kernel [C, O] -> [..., O]."""
    if jax.default_backend() != "cpu":
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
    return _product(x, kernel, **options)


def conv_general_dilated(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, *, dimension_numbers: Any, **options: Any
) -> Array:
    """`jax.lax.conv_general_dilated` of x [B, H, W, C] with a kernel [k, l, C / groups, O] -> [B, H', W', O]."""
    plain = options["feature_group_count"] == 1 and {*options["lhs_dilation"], *options["rhs_dilation"]} == {1}
    if jax.default_backend() != "cpu" or x.ndim != 4 or not plain:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=dimension_numbers, **options)
    pads = padding
    if isinstance(padding, str):
        pads = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _as_product(x, kernel, strides, pads)


def _as_product(x: Array, kernel: Array, strides: Sequence[int], pads: Sequence[tuple[int, int]]) -> Array:
    rows, columns, channels, out = kernel.shape
    x = jnp.pad(x, ((0, 0), (0, 0), pads[1], (0, 0)))
    x = _beside(x, 2, columns, strides[1])
    if strides[0] != 1:
        x = _beside(jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0))), 1, rows, strides[0])
        return _product(x, kernel.reshape(-1, out))
    made = _product(x, kernel.transpose(1, 2, 0, 3).reshape(columns * channels, rows * out))
    made = jnp.pad(made, ((0, 0), pads[0], (0, 0), (0, 0)))
    high = made.shape[1] - rows + 1
    return functools.reduce(jnp.add, (made[:, i : i + high, :, i * out : (i + 1) * out] for i in range(rows)))


def _beside(x: Array, axis: int, count: int, stride: int) -> Array:
    """Along the last axis, each place of an axis, one in `stride` of them, and those up to `count` after it."""
    last = x.shape[axis] - count
    slices = [jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(count)]
    return slices[0] if count == 1 else jnp.concatenate(slices, axis=-1)


def _product(x: Array, matrix: Array, **options: Any) -> Array:
    """[..., C] by [C, O] -> [..., O], as a product of two matrices."""
    flat = x.reshape(-1, x.shape[-1])
    return jax.lax.dot_general(flat, matrix, (((1,), (0,)), ((), ())), **options).reshape(*x.shape[:-1], -1)


Linear = functools.partial(nnx.Linear, dot_general=dot_general)
Conv = functools.partial(nnx.Conv, conv_general_dilated=conv_general_dilated)
