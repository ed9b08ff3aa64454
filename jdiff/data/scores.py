"""Scores of the examples of an index: numbers that a scorer gives each picture, as columns for the SQL of a view.

INDEX/scores/SCORER holds one Parquet file a shard, which is written whole or not at all and says which rows it is of
and what scored them. So scoring goes on where it was stopped, follows an index that grows, and starts anew where the
shard or the scorer has changed. A score is a column once all shards have it. Where records of the examples have a field
of its name, the score is the column.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jdiff.atomic_files import remove_unfinished, replaced
from jdiff.data.array_records import opened
from jdiff.data.decode import decode
from jdiff.data.headers import RejectError
from jdiff.data.parts import Part, part_name, parts_of
from jdiff.data.reader import is_same, stamp
from jdiff.data.sealed import check_seal, seal
from jdiff.json_files import parse_object
from jdiff.locks import locked

SCORES = "scores"
BATCH = 32
_KEYS = ("shard", "key", "offset")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class Scorer(Protocol):
    """What scores pictures."""

    @property
    def name(self) -> str:
        """Of the folder of its scores."""
        ...

    @property
    def identity(self) -> str:
        """Of what its numbers depend on: with another, all is scored again."""
        ...

    @property
    def at_least(self) -> int:
        """The side down to which a JPEG may be decoded smaller than it is."""
        ...

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns by name, a row a picture: numbers, truths, or vectors. NaN where a picture has no score."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """The scores of one scorer in an index."""

    name: str
    columns: dict[str, pa.DataType]
    files: list[Path]
    """Of the shards that have them."""
    missing: int
    """Shards that have none, or none of their rows as they are now."""


def score(
    index: Path, scorer: Scorer, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, int]:
    """Scores what `scorer` has not scored yet. Returns counts: of shards and examples scored now, of those that cannot
    be decoded, which have no score, and of shards that had their scores.

    Raises ValueError where a shard is not as it was when it was indexed, where SQL cannot name a column of the scorer,
    or where another process scores the same.
    """
    parts = parts_of(index)
    folder = index / SCORES / scorer.name
    with locked(folder, what="scoring"):
        remove_unfinished(folder)
        return _scored_parts(parts, folder, scorer, progress)


def _scored_parts(
    parts: dict[Path, Part], folder: Path, scorer: Scorer, progress: Callable[[int, int], None]
) -> dict[str, int]:
    counts = {"shards": 0, "examples": 0, "cannot_be_decoded": 0, "shards_before": 0}
    for done, (path, part) in enumerate(parts.items(), 1):
        out = folder / part_name(part.shard)
        mark = {"digest": part.digest, "scorer": scorer.identity}
        if _mark(out) == mark:
            counts["shards_before"] += 1
            continue
        rows = pq.read_table(path, columns=[*_KEYS, "size", "caption", "reject"])
        rows = rows.filter(rows["reject"].is_null())
        table, undecoded = _scored(rows, part, scorer)
        counts["shards"] += 1
        counts["examples"] += len(rows)
        counts["cannot_be_decoded"] += undecoded
        with replaced(out) as unfinished:
            pq.write_table(table.replace_schema_metadata({"jdiff": json.dumps(mark)}), unfinished, compression="zstd")
            seal(unfinished)
        progress(done, len(parts))
    return counts


def scored(index: Path, parts: dict[Path, Part]) -> list[Scored]:
    """What scores an index has, of any scorer whose rows are those of `parts`."""
    found = []
    for folder in sorted(path for path in (index / SCORES).glob("*/") if not path.name.startswith(".")):
        files, columns, identities = [], {}, set()
        for part in parts.values():
            path = folder / part_name(part.shard)
            mark = _mark(path)
            if mark.get("digest") == part.digest:
                files.append(path)
                identities.add(str(mark.get("scorer")))
                schema = pq.read_schema(path)
                columns |= {name: schema.field(name).type for name in schema.names if name not in _KEYS}
        # Shards that were scored by two scorers of one name have no score in common.
        missing = len(parts) - len(files) if len(identities) < 2 else len(parts)
        found.append(Scored(name=folder.name, columns=columns, files=files, missing=missing))
    return found


def embeddings(index: Path, parts: dict[Path, Part]) -> tuple[pa.Table, str]:
    """The rows (shard, key, offset, embedding) that a scorer left, and its name. Raises ValueError where none did, or
    not for every shard."""
    for one in scored(index, parts):
        if "embedding" in one.columns:
            if one.missing:
                raise ValueError(f"{one.missing} of {len(parts)} shards have no embeddings of {one.name}: score again")
            return pa.concat_tables(
                [pq.read_table(path, columns=[*_KEYS, "embedding"]) for path in one.files]
            ), one.name
    raise ValueError(
        f"index {index} has no embeddings: `jdiff data score {index} --scorer clip --clip FOLDER --embeddings`"
    )


def check_name(name: str, scorer: str) -> None:
    """Raises ValueError for a scorer's column that SQL cannot name without quotes."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"scorer {scorer} gives a column {name!r}; its name must be of letters, digits and _")


def _mark(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        if wrong := check_seal(path):
            raise ValueError(f"it {wrong}")
        schema = pq.read_schema(path)
        mark = parse_object((schema.metadata or {})[b"jdiff"], "its metadata")
        if missing := [name for name in _KEYS if name not in schema.names]:
            raise ValueError(f"it lacks the columns {', '.join(missing)}")
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no scores, or is damaged: {error}; remove it and score again") from error
    return mark


def _scored(rows: pa.Table, part: Part, scorer: Scorer) -> tuple[pa.Table, int]:
    """The scores of a shard's rows, and how many cannot be decoded."""
    keys, values = [], []
    for images, some in _batches(rows, part, scorer.at_least):
        keys += [{name: row[name] for name in _KEYS} for row in some]
        values.append(scorer(images, [row["caption"] for row in some]))
    columns: dict[str, Any] = {name: [row[name] for row in keys] for name in _KEYS}
    for name in values[0] if values else ():
        check_name(name, scorer.name)
    for name in values[0] if values else ():
        column = np.concatenate([batch[name] for batch in values])
        columns[name] = _column(column)
    if not values:
        # Nothing to score: the columns are still those of the scorer.
        columns |= {name: _column(column)[:0] for name, column in scorer([_BLANK], [""]).items()}
    types = {"shard": pa.string(), "key": pa.string(), "offset": pa.int64()}
    arrays = {name: pa.array(column, types.get(name)) for name, column in columns.items()}
    return pa.table(arrays), len(rows) - len(keys)


_BLANK = Image.new("RGB", (64, 64))


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values, from_pandas=True)


def _batches(rows: pa.Table, part: Part, at_least: int) -> Iterator[tuple[list[Image.Image], list[dict[str, Any]]]]:
    """Pictures and their rows, BATCH at a time, without what cannot be decoded."""
    if not len(rows):
        return
    try:
        if not is_same(part.stamp, stamp(part.shard)):
            raise ValueError(f"shard {part.shard} has changed since it was indexed: index it again")
        with opened(part.shard) as reader:
            images, some = [], []
            for row in rows.to_pylist():
                try:
                    images.append(decode(reader.read(row["offset"], row["size"]), (at_least, at_least))[0])
                    some.append(row)
                except RejectError:
                    continue
                if len(images) == BATCH:
                    yield images, some
                    images, some = [], []
            if images:
                yield images, some
    except OSError as error:
        raise ValueError(f"shard {part.shard} cannot be read: {error}") from error
