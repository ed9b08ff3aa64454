"""Attention over a grid of tokens: which tokens a token attends to, as a choice.

With logits l_ij = q_i . k_j / sqrt(width of a head), and S(i) the tokens that token i attends to,

    o_i = sum over j in S(i) of v_j exp(l_ij) / sum over j in S(i) of exp(l_ij)

- Full (1706.03762): all N tokens.
- Windowed (Swin, 2103.14030, without the shifts): those of the same square of w x w tokens.
- Strided (1904.10509, its strided pattern, in both directions and without its order): those of the same square of
  s x s tokens, and those whose row and column leave the same remainders by s.
- Axial (1912.12180): those of the same row, then, of the result, those of the same column. Published layers have
  queries and keys of their own for each of the two; here both have the same.
- Linear (2006.16236): all, with phi(q_i) . phi(k_j) in the place of exp(l_ij), where phi(x) = elu(x) + 1; the sums
  over j are the same for every i.

For a grid of H x W = N tokens the number of products grows as N^2, N w^2, N (s^2 + N / s^2), N (H + W) and N.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jdiff.models import ambient
from jdiff.models.fused import fits, fused_attend
from jdiff.models.ring import ring_attend
from jdiff.typing import Array


def attend(q: Array, k: Array, v: Array) -> Array:
    """[B, N, heads, d], [B, M, heads, d] twice -> [B, N, heads, d]: of all tokens to all; in a ring where the ambient
    mesh has an axis `context`, else by the platform's kernel."""
    if ambient.size("context") > 1:
        return ring_attend(q, k, v)
    return fused_attend(q, k, v) if fits(q, k) else _attend(q, k, v)


def attend_pixels(q: Array, k: Array, v: Array) -> Array:
    """As `attend`, of a network of convolutions: under `context` its tokens are split in here alone."""
    return ambient.along_batch(attend(*map(ambient.along_batch, (q, k, v))))


def _attend(q: Array, k: Array, v: Array) -> Array:
    platform = ambient.platform()
    if platform != "gpu":
        return _heads_first(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, implementation=kernel(platform, q.dtype, q.shape[-1]))


def _heads_first(q: Array, k: Array, v: Array) -> Array:
    """Products of matrices that lie in one piece, and a division of their N x d results, not of the N x M weights."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=wide) * wide.type(q.shape[-1] ** -0.5)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=wide)
    return (mixed / total).astype(v.dtype).swapaxes(1, 2)


def kernel(platform: str, dtype: Any, width: int) -> Any:
    """cuDNN's wants a GPU, half precision, and heads that are a multiple of 8 and, before Hopper, at most 128 wide."""
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return "cudnn" if platform == "gpu" and half and width % 8 == 0 and width <= 128 else "xla"


@dataclass(frozen=True, kw_only=True)
class FullAttention:
    """(q [B, ..., heads, d], k and v [B, ..., heads, d]) -> [B, ..., heads, d]; the tokens need not form a grid, nor
    those of k and v be those of q."""

    @property
    def divisor(self) -> int:
        """What the edges of the grid must be multiples of."""
        return 1

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        return attend(_flat(q), _flat(k), _flat(v)).reshape(q.shape)


@dataclass(frozen=True, kw_only=True)
class WindowedAttention:
    """(q, k, v), each [B, H, W, heads, d] -> the same; nothing passes from window to window.

    Raises ValueError for a grid that windows do not divide, and, when built, for a window without tokens.
    """

    window: int
    """Edge of the squares, in tokens."""

    def __post_init__(self):
        _check_edge("window", self.window)

    @property
    def divisor(self) -> int:
        """What the edges of the grid must be multiples of."""
        return self.window

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        _check_grid("window", self.window, q)
        blocks = [_blocks(x, self.window) for x in (q, k, v)]
        mixed = _attend(*(x.reshape(-1, self.window**2, *q.shape[-2:]) for x in blocks))
        return _unblocked(mixed.reshape(blocks[0].shape))


@dataclass(frozen=True, kw_only=True)
class StridedAttention:
    """(q, k, v), each [B, H, W, heads, d] -> the same. Two of these in a row connect all tokens.

    Raises ValueError for a grid that the stride does not divide, and, when built, for a stride below 1.
    """

    stride: int
    """Edge of the squares, and distance of the other tokens that a token attends to."""

    def __post_init__(self):
        _check_edge("stride", self.stride)

    @property
    def divisor(self) -> int:
        """What the edges of the grid must be multiples of."""
        return self.stride

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        _check_grid("stride", self.stride, q)
        blocks = [_blocks(x, self.stride) for x in (q, k, v)]
        b, rows, columns, s, _, heads, d = blocks[0].shape
        # p: which block, i and j: which token of it.
        q, k, v = (x.reshape(b, rows * columns, s * s, heads, d) for x in blocks)
        wide = jnp.promote_types(q.dtype, jnp.float32)
        inside = jnp.einsum("bpihd,bpjhd->bphij", q, k, preferred_element_type=wide)
        across = jnp.einsum("bpihd,bmihd->bphim", q, k, preferred_element_type=wide)
        # The token itself is in both sets.
        own = jnp.eye(rows * columns, dtype=bool)[:, None, None]
        across = jnp.where(own, -jnp.inf, across)
        weights = jax.nn.softmax(jnp.concatenate([inside, across], axis=-1) / wide.type(d**0.5), axis=-1)
        inside, across = jnp.split(weights.astype(v.dtype), [s * s], axis=-1)
        mixed = jnp.einsum("bphij,bpjhd->bpihd", inside, v) + jnp.einsum("bphim,bmihd->bpihd", across, v)
        return _unblocked(mixed.reshape(blocks[0].shape))


@dataclass(frozen=True, kw_only=True)
class AxialAttention:
    """(q, k, v), each [B, H, W, heads, d] -> the same."""

    @property
    def divisor(self) -> int:
        """What the edges of the grid must be multiples of."""
        return 1

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        v = _along_rows(q, k, v)
        return _along_rows(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)


@dataclass(frozen=True, kw_only=True)
class LinearAttention:
    """(q [B, ..., heads, d], k and v [B, ..., heads, d]) -> [B, ..., heads, d]; sums are in float32 or wider."""

    @property
    def divisor(self) -> int:
        """What the edges of the grid must be multiples of."""
        return 1

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        wide = jnp.promote_types(q.dtype, jnp.float32)
        phi = lambda x: jax.nn.elu(_flat(x).astype(wide)) + 1
        features, keys = phi(q), phi(k)
        values = jnp.einsum("bmhc,bmhd->bhcd", keys, _flat(v).astype(wide))
        total = jnp.einsum("bnhc,bhc->bnh", features, keys.sum(axis=1))
        mixed = jnp.einsum("bnhc,bhcd->bnhd", features, values) / total[..., None]
        return mixed.astype(q.dtype).reshape(q.shape)


Mixing = FullAttention | WindowedAttention | StridedAttention | AxialAttention | LinearAttention
FULL = FullAttention()


def _check_edge(name: str, edge: int) -> None:
    if edge < 1:
        raise ValueError(f"{name}: {edge} is not at least 1")


def _check_grid(name: str, edge: int, q: Array) -> None:
    _, h, w, _, _ = q.shape
    if h % edge or w % edge:
        raise ValueError(f"{name}: {edge} does not divide a grid of {h} x {w} tokens")


def _flat(x: Array) -> Array:
    """[B, ..., heads, d] -> [B, N, heads, d]."""
    return x.reshape(x.shape[0], -1, *x.shape[-2:])


def _blocks(x: Array, edge: int) -> Array:
    """[B, H, W, heads, d] -> [B, H/e, W/e, e, e, heads, d]."""
    b, h, w, heads, d = x.shape
    return x.reshape(b, h // edge, edge, w // edge, edge, heads, d).swapaxes(2, 3)


def _unblocked(x: Array) -> Array:
    """The inverse of `_blocks`."""
    b, rows, columns, edge, _, heads, d = x.shape
    return x.swapaxes(2, 3).reshape(b, rows * edge, columns * edge, heads, d)


def _along_rows(q: Array, k: Array, v: Array) -> Array:
    rows = [x.reshape(-1, *x.shape[2:]) for x in (q, k, v)]
    return _attend(*rows).reshape(q.shape)
