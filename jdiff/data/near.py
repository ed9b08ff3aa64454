"""Pairs of pictures that are alike, of many, in time that grows nearly as their number does.

Each picture has keys: signs of random projections of its detail (Charikar, "Similarity estimation techniques from
rounding algorithms", 2002), about 2 log2(N) of them to a key. Two pictures at an angle a agree in one sign with the
probability 1 - a / pi, and so in all signs of a key often enough only if they are much alike. There are twelve keys of
the whole picture, and of each of fourteen crops of it; a whole picture looks for its keys among those of all others,
also with its three least certain signs turned (Lv et al., "Multi-probe LSH", 2007). What it meets so is compared by a
64-bit sketch, by mean colours and by the signs of all keys, and what is near by these by `likeness.aligned`.

Where more than `MOST` pictures share a key, the first of these alone are looked at: those that would be kept.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from jdiff.data.likeness import CUTS, Box, aligned, detail, greys, means
from jdiff.data.spill import Spill

KEYS, TURNED, MOST = 12, 3, 32
_COARSE = 8
"""Frequencies a side that the keys are made of."""
_SKETCH_BITS, _SKETCH_LIMIT, _KEYS_LIMIT = 64, 16, 0.2
"""Signs that may differ, of the sketch and as a share of all keys."""
_CHUNK, _PAIRS, _STRETCH = 1024, 256, 2**16
"""Pictures, pairs and keys in memory at a time. Pairs lie anywhere: a read of each takes 64 kB of a file with it."""
_PART, _PARTS = 2**17, 8
"""Keys are sorted in parts of some 131,000, or by eighths."""
_COLOUR = 16
"""Levels of 255 by which the means of colours may differ; `likeness` is stricter, once the crop is found."""
_FLAT = 8.0
"""A projection up to this is none: what coding leaves on a blank picture."""
_MIDDLE = (2 / 64, 2 / 64)
_SHIFTS = [[(0.0, 3 / 64), (3 / 64, 0.0)], [(0.0, 6 / 64), (3 / 64, 3 / 64), (6 / 64, 0.0)]]
BOXES: list[Box] = [((0.0, 0.0), (0.0, 0.0)), (_MIDDLE, _MIDDLE)]
"""The whole picture first."""
BOXES += [(across, down) for cuts in _SHIFTS for across in cuts for down in cuts]
_PLACES = np.array([[CUTS.index(cut) for cut in box] for box in BOXES])


def pairs_alike(thumbnails: np.ndarray | Spill, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Of uint8 [N, likeness.BYTES], in the order of preference: the numbers a < b of each pair that is at most `limit`
    apart, its distance, and how many pairs were compared in full.

    Keys, sketches and colours go to files, and come back an eighth of one key of the twelve at a time: in memory, a
    picture takes some 0.2 kB."""
    bits = int(np.clip(round(2 * np.log2(max(len(thumbnails), 2)) - 6), 8, 56))
    met, other, box = _candidates(*_keys(thumbnails, bits), bits)
    apart = np.full(len(met), np.inf, np.float32)
    for first in range(0, len(met), _PAIRS):
        part = slice(first, first + _PAIRS)
        apart[part] = aligned(thumbnails[other[part]], thumbnails[met[part]], _PLACES[box[part]], limit)
    good = apart <= limit
    a, b, apart, compared = np.minimum(met, other)[good], np.maximum(met, other)[good], apart[good], len(met)
    # A pair that met both ways counts by its nearer one.
    order = firsts(a * np.int64(len(thumbnails)) + b, apart)
    return a[order], b[order], apart[order], compared


def _candidates(
    keys: Spill, turns: Spill, sketches: Spill, colours: Spill, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole pictures, the others that they met, and the crop of those that is nearest by all keys."""
    boxes, total = len(BOXES), keys.shape[1]
    parts = int(np.clip(total // _PART, 1, _PARTS))
    pairs, crops, differences = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)], [np.zeros(0, np.uint16)]
    # Of whole pictures, which are those that ask.
    sketch = np.concatenate([sketches[some][::boxes] for some in _stretches(total)])
    colour = np.concatenate([colours[:, some][:, ::boxes] for some in _stretches(total)], 1)
    for number in range(KEYS):
        asking = np.concatenate([keys[number, some][::boxes] for some in _stretches(total)])
        likely = [(np.zeros(0, np.int64), np.zeros(0, np.uint32))]
        for part in range(parts):
            order, own, their_sketch, their_colour = _sorted(keys, number, sketches, colours, part, parts)
            for one, place in met(own, asking, turns[number], MOST, part, parts):
                apart = np.bitwise_count(sketch[one] ^ their_sketch[place])
                good = np.flatnonzero((apart <= _SKETCH_LIMIT) & (order[place] // boxes != one))
                one, place = one[good], place[good]
                good = (np.abs(colour[:, one] - their_colour[:, place]) <= _COLOUR).all(0)
                likely.append((one[good], order[place[good]]))
        one, entry = map(np.concatenate, zip(*likely, strict=True))
        turned = np.zeros(len(one), np.uint16)
        for key in range(KEYS):
            turned += np.bitwise_count(keys[key, one * boxes] ^ keys[key, entry])
        good = turned <= _KEYS_LIMIT * KEYS * bits
        other, box = np.divmod(entry[good], boxes)
        pairs.append(one[good] * np.int64(total // boxes) + other)
        crops.append(box.astype(np.uint8))
        differences.append(turned[good])
    pair, crop = np.concatenate(pairs), np.concatenate(crops)
    # Of crops as near as each other the first.
    nearest = firsts(pair, np.concatenate(differences).astype(np.int64) * boxes + crop)
    return *np.divmod(pair[nearest], max(total // boxes, 1)), crop[nearest]


def _stretches(total: int) -> list[slice]:
    """Of pictures with their crops, some at a time; one at least."""
    step = _STRETCH // len(BOXES) * len(BOXES)
    return [slice(first, first + step) for first in range(0, max(total, 1), step)]


def _part(keys: np.ndarray, parts: int) -> np.ndarray:
    """Which of `parts` each key is in: by all of its bits, so that parts are about as large as each other."""
    return (keys * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % np.uint64(parts)


def _sorted(
    keys: Spill, number: int, sketches: Spill, colours: Spill, part: int, parts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One part of the keys of a number: the places of pictures and crops in the order of their keys, these, and the
    sketches and colours of the same."""
    found = []
    for some in _stretches(keys.shape[1]):
        own = keys[number, some]
        here = np.flatnonzero(_part(own, parts) == part)
        found.append(
            ((some.start + here).astype(np.uint32), own[here], sketches[some][here], colours[:, some][:, here])
        )
    order, own, sketch, colour = (np.concatenate(arrays, -1) for arrays in zip(*found, strict=True))
    by_key = np.argsort(own, kind="stable")
    # A flat picture's crops all have one key: each picture counts once.
    again = (np.diff(own[by_key]) == 0) & (np.diff(order[by_key] // len(BOXES)) == 0)
    by_key = by_key[np.append(True, ~again)[: len(by_key)]]
    return order[by_key], own[by_key], sketch[by_key], colour[:, by_key]


def firsts(group: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The place of the least of each group, groups in their order."""
    order = np.lexsort((by, group))
    return order[np.append(True, np.diff(group[order]) != 0)[: len(order)]]


def _keys(thumbnails: np.ndarray | Spill, bits: int) -> tuple[Spill, Spill, Spill, Spill]:
    """In files, uint64: keys [KEYS, N * boxes], each picture's boxes together; the bits of the least certain signs of
    the whole pictures' keys [KEYS, TURNED, N]; sketches [N * boxes]. And the means of colours, int16 [3, N * boxes].
    """
    count, boxes = len(thumbnails), len(BOXES)
    projections = np.random.default_rng(5).standard_normal((_COARSE**2, KEYS * bits + _SKETCH_BITS), np.float32)
    keys = Spill((KEYS, count * boxes), np.uint64)
    turns = Spill((KEYS, TURNED, count), np.uint64)
    sketches, colours = Spill((count * boxes,), np.uint64), Spill((3, count * boxes), np.int16)
    single = packed(np.eye(bits, dtype=bool))
    for first in range(0, count, _CHUNK):
        part = slice(first, first + _CHUNK)
        some = thumbnails[part]
        grey, own = greys(some), np.empty((KEYS, len(some), boxes), np.uint64)
        sketch, colour = np.empty((len(some), boxes), np.uint64), np.empty((3, len(some), boxes), np.int16)
        for place, box in enumerate(BOXES):
            projected = detail(grey, box, _COARSE).reshape(len(grey), -1) @ projections
            signs = projected[:, : KEYS * bits].reshape(-1, KEYS, bits)
            own[..., place] = packed(signs > _FLAT).T
            sketch[:, place] = packed(projected[:, KEYS * bits :] > _FLAT)
            colour[..., place] = means(some, box)
            if place == 0:
                weak = np.argpartition(np.abs(signs - _FLAT), TURNED, -1)[..., :TURNED]
                turns[:, :, part] = single[weak].transpose(1, 2, 0)
        entries = slice(first * boxes, (first + len(some)) * boxes)
        keys[:, entries] = own.reshape(KEYS, -1)
        sketches[entries], colours[:, entries] = sketch.reshape(-1), colour.reshape(3, -1)
    return keys, turns, sketches, colours


def packed(signs: np.ndarray) -> np.ndarray:
    """Signs, bool [..., up to 64], as bits: uint64 [...]."""
    packed = np.zeros((*signs.shape[:-1], 8), np.uint8)
    some = np.packbits(signs, axis=-1)
    packed[..., : some.shape[-1]] = some
    return packed.view(np.uint64)[..., 0]


def met(
    keys: np.ndarray, asking: np.ndarray, turns: np.ndarray, most: int, part: int = 0, parts: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers in `asking` beside places in the sorted `keys`, which are those of one part, that have the same key, some
    signs turned; the first `most` of each."""
    for some in (some for size in range(TURNED + 1) for some in combinations(range(TURNED), size)):
        wanted = asking.copy()
        for place in some:
            wanted ^= turns[place]
        # In order, so that looking them up stays within the cache.
        own = np.flatnonzero(_part(wanted, parts) == part)
        order = own[np.argsort(wanted[own])]
        begin = np.searchsorted(keys, wanted[order], "left")
        number = np.minimum(np.searchsorted(keys, wanted[order], "right") - begin, most)
        yield from _expanded(order, begin, number)


def _expanded(asking: np.ndarray, begin: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every one that asks beside every place in its range, some million at a time."""
    hit = np.flatnonzero(counts)
    ends = np.cumsum(counts[hit])
    start = 0
    while start < len(hit):
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + 2**20, "right")))
        some = hit[start:stop]
        number = counts[some]
        within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        yield np.repeat(asking[some], number), np.repeat(begin[some], number) + within
        start = stop
