"""Pairs of vectors that point nearly the same way, of many, and captions as such vectors.

The distance is 1 minus the cosine. Vectors meet by keys of the signs of random projections, as pictures do in `near`,
and what meets is compared in full; of more than MOST that share a key only the first, those that would be kept. That
takes the place of the cells of SemDeDup (Abbas et al., 2303.09540), whose k-means costs N times the number of cells.

A caption is the counts of its runs of three letters (Damashek, "Gauging similarity with n-grams", 1995), lower case,
blanks as one, hashed into WIDTH numbers with a sign each (Weinberger et al., 0902.2206).
"""

from collections.abc import Sequence

import numpy as np

from jdiff.data.near import TURNED, firsts, met, packed

WIDTH, KEYS, MOST = 512, 24, 8
LARGEST = 0.2
"""The greatest distance; beyond, too many pairs would share no key."""
_CHUNK = 2**14
_MULTIPLIERS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], np.uint64)


def pairs_close(vectors: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Of float32 [N, D], in the order of preference: the numbers a < b of each pair at most `limit` apart, its
    distance, and how many pairs were compared in full. A vector of zeros is near none."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(length > 0, length, 1)
    count = len(vectors)
    bits = int(np.clip(round(np.log2(max(count, 2)) + 6), 8, 56))
    centred, spread = vectors, 1.0
    if count:
        # Where vectors crowd to one side, they are told apart as seen from their middle, and are further apart there,
        # which only vectors that are all near each other should not be.
        around = vectors - vectors.mean(0)
        wide = float((around**2).sum(-1).mean())
        if limit <= wide / 4:
            centred, spread = around, wide
    share = np.arccos(1 - limit / spread) / np.pi
    most = 64 * share + 4 * np.sqrt(64 * share * (1 - share))
    projections = np.random.default_rng(6).standard_normal((vectors.shape[1], KEYS * bits + 64), np.float32)
    projected = centred @ projections
    sketches = packed(projected[:, KEYS * bits :] > 0)
    single, found = packed(np.eye(bits, dtype=bool)), [np.zeros(0, np.int64)]
    for number in range(KEYS):
        signs = projected[:, number * bits : (number + 1) * bits]
        keys = packed(signs > 0)
        turns = single[np.argpartition(np.abs(signs), TURNED, -1)[:, :TURNED]].T
        order = np.argsort(keys, kind="stable")
        for one, place in met(keys[order], keys, turns, MOST):
            other = order[place]
            near = (np.bitwise_count(sketches[one] ^ sketches[other]) <= most) & (one != other)
            a, b = np.minimum(one, other)[near], np.maximum(one, other)[near]
            found.append(np.unique(a * np.int64(count) + b))
    a, b = np.divmod(np.unique(np.concatenate(found)), max(count, 1))
    apart = np.concatenate(
        [np.zeros(0, np.float32)]
        + [
            1 - (vectors[a[first : first + _CHUNK]] * vectors[b[first : first + _CHUNK]]).sum(-1)
            for first in range(0, len(a), _CHUNK)
        ]
    )
    order = firsts(a * np.int64(count) + b, apart)
    kept = order[apart[order] <= limit]
    return a[kept], b[kept], apart[kept], len(a)


def plain(caption: str) -> str:
    """A caption in lower case with single blanks."""
    return " ".join(caption.lower().split())


def caption_vectors(captions: Sequence[str]) -> np.ndarray:
    """float32 [N, WIDTH]."""
    vectors = np.zeros((len(captions), WIDTH), np.float32)
    for row, caption in enumerate(captions):
        letters = np.frombuffer(f"  {plain(caption)}  ".encode("utf-32-le"), np.uint32).astype(np.uint64)
        mixed = sum(letters[place : len(letters) - 2 + place] * _MULTIPLIERS[place] for place in range(3))
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIERS[0]
        sign = np.where(mixed >> np.uint64(40) & np.uint64(1), 1, -1)
        np.add.at(vectors[row], (mixed >> np.uint64(16)) % np.uint64(WIDTH), sign)
    return vectors
