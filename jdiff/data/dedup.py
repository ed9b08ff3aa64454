"""Duplicates of an index: exact ones by SHA-256, near ones by perceptual hashes that differ in few bits.

Hashes within d of each other agree, in at least one of m bands of their bits, up to floor(d / m) bits (the pigeonhole
principle; Norouzi, Punjani and Fleet, "Fast exact search in Hamming space with multi-index hashing", 2014). So only
hashes that share a band up to that are compared, and none within d is missed. Bands are about log2(N) bits wide, which
keeps what shares one near constant as N grows.

Kept is the row with most pixels, of these the one with the longest caption, of these the first by shard and offset.
Rows are taken in that order, and a row is a duplicate if it lies within d of one that is kept: of the nearest, then the
first. So every duplicate resembles what is kept in its place, and clusters do not chain.
"""

import collections
import json
import os
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jdiff.data.index import fingerprint, parts_of
from jdiff.data.view import DEDUP

RULE = "most pixels, then longest caption, then first by shard and offset"
_COLUMNS = ["shard", "key", "offset", "width", "height", "caption", "sha256", "phash", "reject"]


def deduplicate(index: Path, *, distance: int = 8) -> dict[str, Any]:
    """Writes the duplicates of `index` beside it, for the columns `duplicate` and `cluster`. Returns counts.

    `distance` is how many of the 64 bits of the perceptual hashes may differ; -1 finds exact duplicates alone. Raises
    ValueError where the index lacks the hashes.
    """
    if not -1 <= distance <= 16:
        raise ValueError(f"distance must be in 0..16 bits, or -1 for exact duplicates alone; got {distance}")
    parts = parts_of(index)
    rows = _rows(list(parts))
    lacking = "sha256" if rows["sha256"].null_count else "phash" if distance >= 0 and rows["phash"].null_count else None
    if lacking:
        depth = "bytes" if lacking == "sha256" else "pixels"
        raise ValueError(f"index {index} has rows without {lacking}: index its shards again with --depth {depth}")
    order = _ranked(rows)
    digest = np.array(rows["sha256"].to_pylist(), "S32")
    _, exact = np.unique(digest, return_inverse=True)
    keeper = _first_of_each(exact, order)
    exact_count = int((keeper != np.arange(len(keeper))).sum())
    pairs = 0
    if distance >= 0:
        left = order[keeper[order] == order]
        hashes = rows["phash"].to_numpy()[left]
        found, pairs = near(hashes, distance)
        # Those that were kept for copies that turn out to be near duplicates themselves pass on what is kept.
        keeper[left] = left[found]
        keeper = keeper[keeper]
    duplicate = keeper != np.arange(len(keeper))
    table = pa.table(
        {
            "shard": rows["shard"],
            "key": rows["key"],
            "offset": rows["offset"],
            "cluster": pa.array(keeper),
            "duplicate": pa.array(duplicate),
        }
    )
    counts = {
        "rows": len(keeper),
        "exact": exact_count,
        "near": int(duplicate.sum()) - exact_count,
        "kept": int((~duplicate).sum()),
        "largest_cluster": int(np.bincount(keeper).max(initial=0)) if len(keeper) else 0,
        "pairs_within_distance": pairs,
        "distance": distance,
        "rule": RULE,
    }
    described = counts | {"index": fingerprint(parts.values())}
    path = index / DEDUP
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(table.replace_schema_metadata({"jdiff": json.dumps(described)}), unfinished)
    os.replace(unfinished, path)
    return counts


def near(hashes: np.ndarray, distance: int) -> tuple[np.ndarray, int]:
    """For each of the uint64 `hashes`, which come in the order of preference, the number of the one kept in its place,
    itself where it is kept; and how many pairs of different hashes lie within `distance`."""
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    rank = np.argsort(first)
    position = np.empty_like(rank)
    position[rank] = np.arange(len(rank))
    neighbours: dict[int, list[int]] = collections.defaultdict(list)
    pairs = 0
    for a, b in pairs_within(values, distance):
        pairs += len(a)
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            neighbours[one].append(other)
            neighbours[other].append(one)
    keeper = np.arange(len(values))
    for value in rank[np.isin(rank, np.fromiter(neighbours, np.int64, len(neighbours)))].tolist():
        kept = [other for other in neighbours[value] if keeper[other] == other and position[other] < position[value]]
        if kept:
            bits = np.bitwise_count(values[kept] ^ values[value])
            keeper[value] = min(zip(bits.tolist(), position[kept].tolist(), kept, strict=True))[2]
    return first[keeper[inverse]], pairs


def pairs_within(values: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places in `values` (uint64, all different) at most `distance` bits apart, each once, in parts."""
    bands = _bands(len(values), distance)
    for number, (shift, width) in enumerate(bands):
        mask = np.uint64((1 << width) - 1)
        part = (values >> np.uint64(shift)) & mask
        order = np.argsort(part, kind="stable")
        sorted_part = part[order]
        for flips in range(distance // len(bands) + 1):
            for bits in combinations(range(width), flips):
                pattern = np.uint64(sum(1 << bit for bit in bits))
                wanted = part ^ pattern
                # Each unordered pair of parts once: the one that has the highest flipped bit looks for the other.
                asking = np.flatnonzero(part & (np.uint64(1) << np.uint64(bits[-1]))) if bits else np.arange(len(part))
                begin = np.searchsorted(sorted_part, wanted[asking], "left")
                counts = np.searchsorted(sorted_part, wanted[asking], "right") - begin
                for one, other in _expanded(asking, begin, counts):
                    other = order[other]
                    apart = values[one] ^ values[other]
                    good = (np.bitwise_count(apart) <= distance) & ((one < other) if not flips else True)
                    good &= ~_found_before(apart, bands[:number], distance // len(bands))
                    if good.any():
                        yield one[good], other[good]


def _expanded(asking: np.ndarray, begin: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every place that asks beside every place in its range, some million at a time."""
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


def _found_before(apart: np.ndarray, bands: list[tuple[int, int]], radius: int) -> np.ndarray:
    """Which differences an earlier band has shown already."""
    found = np.zeros(len(apart), bool)
    for shift, width in bands:
        found |= np.bitwise_count((apart >> np.uint64(shift)) & np.uint64((1 << width) - 1)) <= radius
    return found


def _bands(count: int, distance: int) -> list[tuple[int, int]]:
    """(lowest bit, width) of each band of the 64 bits."""
    number = min(max(64 // max(int(np.log2(max(count, 2))), 1), 1), distance + 1)
    edges = np.linspace(0, 64, number + 1).astype(int).tolist()
    return [(low, min(high - low, 63)) for low, high in pairwise(edges)] if number > 1 else [(0, 63)]


def _rows(files: list[Path]) -> pa.Table:
    tables = []
    for path in files:
        table = pq.read_table(path, columns=_COLUMNS)
        tables.append(table.filter(table["reject"].is_null()))
    return pa.concat_tables(tables)


def _ranked(rows: pa.Table) -> np.ndarray:
    """Row numbers, what is to be kept first. The table itself is in the order of shard and offset."""
    pixels = rows["width"].to_numpy().astype(np.int64) * rows["height"].to_numpy()
    letters = np.array([len(caption) for caption in rows["caption"].to_pylist()])
    return np.lexsort((np.arange(len(pixels)), -letters, -pixels))


def _first_of_each(group: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For each row, the row of its group that comes first in `order`."""
    _, first = np.unique(group[order], return_index=True)
    return order[first][group]
