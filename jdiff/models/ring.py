"""Attention of tokens that are split over devices (ring attention, 2310.01889; by blocks, 1805.02867).

Each device keeps its queries; keys and values go around, one device further at a time. With m the greatest logit so
far, of the blocks j seen up to now,

    o = sum over j of v_j exp(l_j - m) / sum over j of exp(l_j - m)

is put together block by block: what is summed up to a greater m is multiplied by exp(m before - m). Sums are float32
or wider. Of each step, the backward pass keeps keys and values and computes the logits again.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jdiff.models import ambient
from jdiff.typing import Array


def ring_attend(q: Array, k: Array, v: Array) -> Array:
    """As `attend`, under a mesh whose axis `context` splits the tokens; numbers of them that it does not divide are
    filled up with some that nobody sees."""
    parts, tokens = ambient.size("context"), q.shape[1]
    seen = _filled(jnp.ones(k.shape[1], bool), 0, parts)
    q, k, v = (_filled(x, 1, parts) for x in (q, k, v))
    split = PartitionSpec(None, "context")
    around = jax.shard_map(
        _around,
        in_specs=(split, split, split, PartitionSpec("context")),
        out_specs=split,
        axis_names={"context"},
    )
    return around(q, k, v, seen)[:, :tokens]


def _filled(x: Array, axis: int, parts: int) -> Array:
    lacking = -x.shape[axis] % parts
    return jnp.pad(x, [(0, lacking if i == axis else 0) for i in range(x.ndim)]) if lacking else x


def _around(q: Array, k: Array, v: Array, seen: Array) -> Array:
    """What a device does: its q [B, n, heads, d] with the k, v [B, m, heads, d] and the mask [m] of all, in turn."""
    parts = jax.lax.axis_size("context")
    following = [(i, (i + 1) % parts) for i in range(parts)]
    summed = _added(None, q, k, v, seen)
    for _ in range(parts - 1):
        k, v, seen = jax.lax.ppermute((k, v, seen), "context", following)
        summed = _added(summed, q, k, v, seen)
    _, total, mixed = summed
    return (mixed / total).astype(v.dtype).swapaxes(1, 2)


@jax.checkpoint
def _added(
    summed: tuple[Array, Array, Array] | None, q: Array, k: Array, v: Array, seen: Array
) -> tuple[Array, Array, Array]:
    """The greatest logit, the sum of weights and the weighted sum, with one more block: [B, heads, n, 1], the same,
    [B, heads, n, d]."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=wide) * wide.type(q.shape[-1] ** -0.5)
    # Not -inf: a block may hold nothing that is seen, and the next one's weights then make its share exactly zero.
    logits = jnp.where(seen, logits, jnp.finfo(wide).min)
    greatest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    if summed is not None:
        greatest = jnp.maximum(greatest, summed[0])
    weights = jnp.exp(logits - greatest)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("bhnm,bmhd->bhnd", weights.astype(v.dtype), v, preferred_element_type=wide)
    if summed is not None:
        fade = jnp.exp(summed[0] - greatest)
        total, mixed = total + fade * summed[1], mixed + fade * summed[2]
    return greatest, total, mixed
