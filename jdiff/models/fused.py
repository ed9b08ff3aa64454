"""Full attention in one kernel of a TPU, where logits stay in the chip's own memory (as in FlashAttention, 2205.14135).

For tokens that are few enough that the logits of a head fit there whole, so that nothing is put together from blocks.
Arrays stay [B, N, heads * d] in main memory, as products leave them: [N, heads, d] would be filled up to 128 lanes a
head there and back. Inside, tokens lie along the lanes: with K, Q, V of a head [d, M], [d, N], [d, M],

    L = K^T Q log2(e) / sqrt(d)  [M, N],   P = 2^(L - max) / sum over M,   O = V P  [d, N]

whose products are not filled up where d is the rows that go through, and whose maxima and sums go over rows. The
backward pass computes P again: with G the gradient of O, dV = G P^T and

    dP = V^T G,   dS = P (dP - sum over M of P dP),   dQ = K dS / sqrt(d),   dK = Q dS^T / sqrt(d)

Sums are float32. Forward mode and second derivatives do not go through it.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from jdiff.models import ambient
from jdiff.typing import Array

_LANES = 128
_ROOM = 48 * 2**20
"""Bytes of a core's own memory that a kernel may fill; v5p, with 64 MiB, has least of the chips it is for."""


def fits(q: Array | jax.ShapeDtypeStruct, k: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether the kernel takes q [B, N, heads, d] and k [B, M, heads, d] under the ambient mesh, which must be of TPUs
    from v5 on: by size, dtype and how it splits them."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None or device.platform != "tpu" or device.device_kind.startswith(("TPU v2", "TPU v3", "TPU v4")):
        return False
    (b, n, heads, d), m = q.shape, k.shape[1]
    # Four arrays of logits of one head, and what goes in and out of the backward pass, twice, for what comes next.
    wanted = 4 * 4 * n * m + 2 * 2 * 7 * max(n, m) * _group(heads // ambient.size("tensor"), d) * d
    whole = b % ambient.size(*ambient.BATCH) == 0 and heads % ambient.size("tensor") == 0
    split = ambient.size("context", "pipeline") > 1
    return whole and not split and min(n, m) >= _LANES and wanted <= _ROOM and q.dtype == k.dtype == jnp.bfloat16


def fused_attend(q: Array, k: Array, v: Array) -> Array:
    """As `attend`, where it `fits`: each device computes its own examples and heads."""
    if ambient.size(*ambient.BATCH, "tensor") == 1:
        return one_device(q, k, v)
    spec = PartitionSpec(ambient.BATCH, None, "tensor")
    return jax.shard_map(one_device, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(q, k, v)


def one_device(q: Array, k: Array, v: Array, *, interpret: bool = False) -> Array:
    """[B, N, heads, d], [B, M, heads, d] twice -> [B, N, heads, d], on one TPU; with `interpret` anywhere, slowly."""
    merged = [x.reshape(*x.shape[:2], -1) for x in (q, k, v)]
    mixed: Any = _fused(*merged, q.shape[-1], interpret)
    return mixed.reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _fused(q: Array, k: Array, v: Array, d: int, interpret: bool) -> Array:
    return _call(_forward, 2, (q,), (q, k, v), d, interpret)[0]


def _kept(q: Array, k: Array, v: Array, d: int, interpret: bool) -> tuple[Array, tuple[Array, ...]]:
    return _fused(q, k, v, d, interpret), (q, k, v)


def _gradients(d: int, interpret: bool, kept: tuple[Array, ...], g: Array) -> tuple[Array, ...]:
    return tuple(_call(_backward, 5, kept, (*kept, g), d, interpret))


_fused.defvjp(_kept, _gradients)


def _group(heads: int, d: int) -> int:
    """Heads that a run of the kernel takes: as few as fill whole lanes, or all."""
    few = math.lcm(d, _LANES) // d
    return few if heads % few == 0 else heads


def _call(
    kernel: Callable, products: int, out: Sequence[Array], arrays: Sequence[Array], d: int, interpret: bool
) -> Sequence[Array]:
    """The kernel on each example and group of heads of arrays [B, N, heads * d]; `products` are those of N x M x d."""
    (b, n, width), m = arrays[0].shape, arrays[1].shape[1]
    group = _group(width // d, d) * d
    block = lambda x: pl.BlockSpec((None, x.shape[1], group), lambda example, heads: (example, 0, heads))
    return pl.pallas_call(
        functools.partial(kernel, d=d),
        grid=(b, width // group),
        in_specs=[block(x) for x in arrays],
        out_specs=[block(x) for x in out],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_ROOM * 4 // 3
        ),
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * b * n * m * width,
            transcendentals=b * n * m * width // d,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *out)),
        ),
        interpret=interpret,
        name=f"attention{kernel.__name__}",
    )(*arrays)


def _forward(q_ref: jax.Ref, k_ref: jax.Ref, v_ref: jax.Ref, o_ref: jax.Ref, *, d: int) -> None:
    queries, keys, values = (_heads(ref, d) for ref in (q_ref, k_ref, v_ref))
    # All logits first: the scheduler lays one head's products beside another's exponentials.
    logits = [_logits(q, k) for q, k in zip(queries, keys, strict=True)]
    mixed = []
    for v, of_head in zip(values, logits, strict=True):
        weights, share = _weights(of_head)
        mixed.append(_product(v, weights.astype(v.dtype), 1, 0) * share)
    _put(o_ref, mixed)


def _backward(
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    g_ref: jax.Ref,
    dq_ref: jax.Ref,
    dk_ref: jax.Ref,
    dv_ref: jax.Ref,
    *,
    d: int,
) -> None:
    dq, dk, dv = [], [], []
    parts = list(zip(*(_heads(ref, d) for ref in (q_ref, k_ref, v_ref, g_ref)), strict=True))
    first = ((_logits(q, k), _product(v, g, 0, 0)) for q, k, v, g in parts)
    for (q, k, _, g), (logits, dp) in zip(parts, _one_ahead(first), strict=True):
        weights, share = _weights(logits)
        weights = weights * share
        ds = (weights * (dp - (weights * dp).sum(axis=0, keepdims=True))).astype(k.dtype)
        dq.append(_product(k, ds, 1, 0) / math.sqrt(d))
        dk.append(_product(q, ds, 1, 1) / math.sqrt(d))
        dv.append(_product(g, weights.astype(g.dtype), 1, 1))
    for ref, parts in ((dq_ref, dq), (dk_ref, dk), (dv_ref, dv)):
        _put(ref, parts)


def _heads(ref: jax.Ref, d: int) -> list[Array]:
    """[N, heads * d] -> [d, N] of each head."""
    turned = ref[...].T
    return [turned[start : start + d] for start in range(0, turned.shape[0], d)]


def _put(ref: jax.Ref, parts: list[Array]) -> None:
    """The inverse of `_heads`."""
    ref[...] = jnp.concatenate(parts).T.astype(ref.dtype)


def _one_ahead(values: Iterator[Any]) -> Iterator[Any]:
    """The same, each made when the one before it is asked for: a third fewer cycles for the backward pass."""
    current = next(values)
    for following in values:
        yield current
        current = following
    yield current


def _logits(q: Array, k: Array) -> Array:
    """[d, N], [d, M] -> [M, N], of powers of 2."""
    return _product(k, q, 0, 0) * (math.log2(math.e) / math.sqrt(q.shape[0]))


def _weights(logits: Array) -> tuple[Array, Array]:
    """[M, N] -> not yet divided by their sums, and what they are to be multiplied with [1, N]: divisions are slow."""
    weights = jnp.exp2(logits - logits.max(axis=0, keepdims=True))
    return weights, 1 / weights.sum(axis=0, keepdims=True)


def _product(a: Array, b: Array, axis: int, other: int) -> Array:
    """Over these axes, summed in float32."""
    return jax.lax.dot_general(a, b, (((axis,), (other,)), ((), ())), preferred_element_type=jnp.float32)
