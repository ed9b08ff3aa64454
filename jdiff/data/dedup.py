"""Duplicates of an index, by pictures, by captions or by embeddings that a scorer left.

- pictures: exact ones by SHA-256, near ones by thumbnails that are alike (`likeness`, `near`).
- captions: exact ones but for case and blanks, near ones by their runs of three letters (`clusters`).
- embeddings: by cosine (`clusters`); of SemDeDup (Abbas et al., 2303.09540) the threshold, not the cells.

Kept is the row with most pixels, of these the one with the longest caption, of these the first by shard and offset.
Rows are taken in that order, and a row is a duplicate if it is alike one that is kept: of the nearest, then the first.
So every duplicate resembles what is kept in its place, and clusters do not chain.
"""

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jdiff.atomic_files import replaced
from jdiff.data.clusters import LARGEST, caption_vectors, pairs_close, plain
from jdiff.data.encoded import hashes
from jdiff.data.likeness import BYTES
from jdiff.data.near import pairs_alike
from jdiff.data.parts import Part, fingerprint, parts_of
from jdiff.data.scores import embeddings
from jdiff.data.sealed import seal
from jdiff.data.spill import Spill
from jdiff.data.sql import DEDUP, dedup_file
from jdiff.locks import locked

RULE = "most pixels, then longest caption, then first by shard and offset"
_COLUMNS = ["shard", "key", "offset", "width", "height", "caption", "sha256", "reject"]
_CHUNK = 4096
USUAL = {"pictures": 0.15, "captions": 0.1, "embeddings": 0.05}
"""How far apart near duplicates may be unless it is said, by what they are compared by."""
_LARGEST = {"pictures": 0.5, "captions": LARGEST, "embeddings": LARGEST}
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, int]


def deduplicate(index: Path, *, by: str = "pictures", distance: float | None = None) -> dict[str, Any]:
    """Writes the duplicates of `index` beside it: for the columns `duplicate` and `cluster` by pictures,
    `caption_duplicate` and `caption_cluster` by captions, and so of embeddings. Returns counts.

    `distance` is how far apart near duplicates may be, as `likeness` measures it or 1 minus the cosine; -1 finds exact
    duplicates alone. Raises ValueError where the index lacks what is compared.
    """
    if by not in USUAL:
        raise ValueError(f"by must be one of {', '.join(USUAL)}; got {by!r}")
    distance = USUAL[by] if distance is None else distance
    if distance != -1 and not 0 <= distance <= _LARGEST[by]:
        raise ValueError(f"distance must be in 0..{_LARGEST[by]}, or -1 for exact duplicates alone; got {distance}")
    parts = parts_of(index)
    with locked(dedup_file(index, by).parent, what=f"deduplicating by {by}"):
        return _deduplicated(index, parts, by, distance)


def _deduplicated(index: Path, parts: dict[Path, Part], by: str, distance: float) -> dict[str, Any]:
    rows = _rows(list(parts), by)
    if by == "pictures":
        _check(index, rows["sha256"], "bytes")
    order = _ranked(rows)
    keeper = _first_of_each(_exact(rows, by), order)
    exact_count = int((keeper != np.arange(len(keeper))).sum())
    pairs = compared = 0
    if distance >= 0:
        left = order[keeper[order] == order]
        a, b, apart, compared = _pairs(index, parts, rows, by, left, distance)
        pairs = len(a)
        # Those that were kept for copies that turn out to be near duplicates themselves pass on what is kept.
        keeper[left] = left[kept_of(len(left), a, b, apart)]
        keeper = keeper[keeper]
    duplicate = keeper != np.arange(len(keeper))
    table = pa.table(
        {
            "shard": rows["shard"],
            "key": rows["key"],
            "offset": rows["offset"],
            DEDUP[by][1]: pa.array(keeper),
            DEDUP[by][0]: pa.array(duplicate),
        }
    )
    counts = {
        "rows": len(keeper),
        "exact": exact_count,
        "near": int(duplicate.sum()) - exact_count,
        "kept": int((~duplicate).sum()),
        "largest_cluster": int(np.bincount(keeper).max(initial=0)) if len(keeper) else 0,
        "pairs_alike": pairs,
        "pairs_compared": compared,
        "by": by,
        "distance": distance,
        "rule": RULE,
    }
    described = counts | {"index": fingerprint(parts.values())}
    with replaced(dedup_file(index, by)) as unfinished:
        pq.write_table(table.replace_schema_metadata({"jdiff": json.dumps(described)}), unfinished)
        seal(unfinished)
    return counts


def _check(index: Path, column: Any, depth: str) -> None:
    if column.null_count:
        name = "sha256" if depth == "bytes" else "thumbnail"
        raise ValueError(f"index {index} has rows without {name}: index its shards again with --depth {depth}")


def _exact(rows: pa.Table, by: str) -> np.ndarray:
    """Equal numbers, from 0 on, for rows that are exact copies of each other."""
    if by == "embeddings":
        return np.arange(len(rows))
    if by == "pictures":
        return np.unique(hashes(rows["sha256"]), return_inverse=True)[1]
    numbers: dict[str, int] = {}
    values = map(plain, rows["caption"].to_pylist())
    return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int64, len(rows))


def _pairs(index: Path, parts: dict[Path, Part], rows: pa.Table, by: str, chosen: np.ndarray, limit: float) -> Pairs:
    """Of the `chosen` rows, which come in the order of preference, the pairs that are alike."""
    if by == "pictures":
        return pairs_alike(_thumbnails(index, parts, chosen), limit)
    if by == "captions":
        captions = rows["caption"].to_pylist()
        return pairs_close(caption_vectors([captions[row] for row in chosen.tolist()]), limit)
    table, _ = embeddings(index, parts)
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    # A picture that cannot be decoded has no embedding: zeros, which are near nothing.
    width = table["embedding"].type.list_size
    place = {row: number for number, row in enumerate(zip(*_places(table), strict=True))}
    given = np.array([place.get(row, -1) for row in zip(*_places(rows), strict=True)], np.int64)[chosen]
    vectors = np.append(flat.reshape(-1, width), np.zeros((1, width), np.float32), 0)
    return pairs_close(vectors[given], limit)


def _places(table: pa.Table) -> tuple[list[str], list[int]]:
    return table["shard"].to_pylist(), table["offset"].to_pylist()


def kept_of(count: int, a: np.ndarray, b: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """For each of `count` rows in the order of preference the number of the one kept in its place, itself where it is
    kept, given the pairs a < b that are alike and how far apart they are."""
    earlier = collections.defaultdict(list)
    for one, other, apart in zip(a.tolist(), b.tolist(), distance.tolist(), strict=True):
        earlier[other].append((apart, one))
    keeper = np.arange(count)
    for row in sorted(earlier):
        keeper[row] = min((pair for pair in earlier[row] if keeper[pair[1]] == pair[1]), default=(0, row))[1]
    return keeper


def _rows(files: list[Path], by: str) -> pa.Table:
    """The rows that are used, with the `letters` of their captions, and these themselves where they are compared."""
    tables = []
    for path in files:
        table = pq.read_table(path, columns=_COLUMNS)
        table = table.filter(table["reject"].is_null())
        table = table.append_column("letters", pc.call_function("utf8_length", [table["caption"]]))
        tables.append(table if by == "captions" else table.drop_columns("caption"))
    return pa.concat_tables(tables)


def _ranked(rows: pa.Table) -> np.ndarray:
    """Row numbers, what is to be kept first. The table itself is in the order of shard and offset."""
    pixels = rows["width"].to_numpy().astype(np.int64) * rows["height"].to_numpy()
    return np.lexsort((np.arange(len(pixels)), -rows["letters"].to_numpy(), -pixels))


def _first_of_each(group: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For each row, the row of its group that comes first in `order`."""
    _, first = np.unique(group[order], return_index=True)
    return order[first][group]


def _thumbnails(index: Path, parts: dict[Path, Part], chosen: np.ndarray) -> Spill:
    """uint8 [chosen, BYTES]. Raises ValueError where the index lacks them."""
    place = np.full(int(chosen.max(initial=-1)) + 1, -1)
    place[chosen] = np.arange(len(chosen))
    kept = Spill((len(chosen), BYTES), np.uint8, dedup_file(index, "pictures").parent)
    row = 0
    for path in parts:
        for batch in pq.ParquetFile(path).iter_batches(_CHUNK, columns=["thumbnail", "reject"]):
            thumbnails = batch.filter(batch["reject"].is_null())["thumbnail"]
            _check(index, thumbnails, "pixels")
            data = np.frombuffer(b"".join(thumbnails.to_pylist()), np.uint8).reshape(-1, BYTES)
            own = place[row : row + len(data)]
            kept[own[own >= 0]] = data[: len(own)][own >= 0]
            row += len(data)
    return kept
