"""Attention of tokens that are split over devices (ring attention, 2310.01889; by blocks, 1805.02867).

Each device keeps its queries; keys and values go around, one device further at a time. With m the greatest logit so
far, of the blocks j seen up to now,

    o = sum over j of v_j exp(l_j - m) / sum over j of exp(l_j - m)

is put together block by block: what is summed up to a greater m is multiplied by exp(m before - m). Sums are float32
or wider. Of each step, the backward pass keeps keys and values and computes the logits again.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.models import ambient
from jdiff.typing import Array


def ring_attend(q: Array, k: Array, v: Array) -> Array:
    """As `attend`, under a mesh whose axis `context` splits the tokens; numbers of them that it does not divide are
    filled up with some that nobody sees."""
    parts, tokens = ambient.size("context"), q.shape[1]
    seen = (np.arange(k.shape[1] + -k.shape[1] % parts) < k.shape[1]).reshape(parts, -1)
    q, k, v = (_cut(x, parts) for x in (q, k, v))
    summed = _added(None, q, k, v, seen)
    for _ in range(parts - 1):
        k, v, seen = _passed_on(k), _passed_on(v), np.roll(seen, 1, 0)
        summed = _added(summed, q, k, v, seen)
    _, total, mixed = summed
    whole = (mixed / total).astype(v.dtype).swapaxes(2, 3)
    return whole.reshape(q.shape[0], -1, *q.shape[3:])[:, :tokens]


def _cut(x: Array, parts: int) -> Array:
    """[B, N, heads, d] -> [B, parts, N / parts, heads, d], a part on each device."""
    lacking = -x.shape[1] % parts
    filled = jnp.pad(x, [(0, lacking if axis == 1 else 0) for axis in range(x.ndim)]) if lacking else x
    return ambient.split(filled.reshape(x.shape[0], parts, -1, *x.shape[2:]), ambient.ANY, "context")


def _passed_on(x: Array) -> Array:
    """What a device has, on the next one. Not by `shard_map`, which `checkify`, and so the samplers, cannot go through
    where other axes of the mesh are the compiler's (JAX 0.10.2)."""
    return ambient.split(jnp.roll(x, 1, 1), ambient.ANY, "context")


@jax.checkpoint
def _added(
    summed: tuple[Array, Array, Array] | None, q: Array, k: Array, v: Array, seen: np.ndarray
) -> tuple[Array, Array, Array]:
    """The greatest logit, the sum of weights and the weighted sum, with one more block, each device's own: of q [B,
    parts, n, heads, d], k and v [B, parts, m, heads, d] and the mask [parts, m] the arrays [B, parts, heads, n, 1], the
    same, [B, parts, heads, n, d]."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bpnhd,bpmhd->bphnm", q, k, preferred_element_type=wide) * wide.type(q.shape[-1] ** -0.5)
    # Not -inf: a block may hold nothing that is seen, and the next one's weights then make its share exactly zero.
    logits = jnp.where(seen[:, None, None], logits, jnp.finfo(wide).min)
    greatest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    if summed is not None:
        greatest = jnp.maximum(greatest, summed[0])
    weights = jnp.exp(logits - greatest)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("bphnm,bpmhd->bphnd", weights.astype(v.dtype), v, preferred_element_type=wide)
    if summed is not None:
        fade = jnp.exp(summed[0] - greatest)
        total, mixed = total + fade * summed[1], mixed + fade * summed[2]
    return greatest, total, mixed
