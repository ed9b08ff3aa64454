"""The parts of an index: one Parquet file a shard, whose metadata say which shard it describes, as it was when read.

A part is sealed (`sealed`), so one that has changed is refused before anything reads its rows.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from jdiff.data.sealed import check_seal
from jdiff.json_files import parse_object

Depth = Literal["headers", "bytes", "pixels"]
SCHEMA = pa.schema(
    {
        "shard": pa.string(),
        "key": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "format": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "caption": pa.string(),
        "script": pa.string(),
        "json": pa.string(),
        "sha256": pa.binary(32),
        "thumbnail": pa.binary(),
        "reject": pa.string(),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What the metadata of one part says; `seen` is `used` and all of `rejected` together."""

    shard: str
    stamp: str
    depth: str
    seen: int
    used: int
    rejected: dict[str, int]
    digest: str
    fields: dict[str, str]
    """Fields of the records and what they hold in this shard: "number", "bool", "text" or "other"."""
    bytes_read: int
    bytes_needed: int

    def check(self, file: str) -> None:
        """Raises ValueError where a field is of another type, or the part is that of another file than `file`."""
        counts = [self.seen, self.used, self.bytes_read, self.bytes_needed]
        mappings = [(self.rejected, int), (self.fields, str)]
        good = all(type(count) is int and count >= 0 for count in counts)
        good &= all(type(text) is str for text in (self.shard, self.stamp, self.depth, self.digest))
        for mapping, kind in mappings:
            good &= type(mapping) is dict and all(type(value) is kind for value in mapping.values())
        if not good:
            raise ValueError(f"its metadata must be that of a part; got {self}")
        if file != part_name(self.shard):
            raise ValueError(f"it is the part of {self.shard}, whose file is {part_name(self.shard)}")


def told(rejected: dict[str, int]) -> str:
    """Counts by reason in words, the most frequent first."""
    ordered = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count}" for reason, count in ordered) or "none"


def part_name(shard: str) -> str:
    """The file of a shard's part."""
    return hashlib.sha256(shard.encode()).hexdigest()[:16] + ".parquet"


def read_part(path: Path) -> Part:
    """The metadata of a part. Raises ValueError where the file is no part, is damaged or has other columns."""
    again = "remove it and index its shard again"
    try:
        schema = pq.read_schema(path)
        names, wrong = schema.names, check_seal(path)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # names are decoded when they are asked for
        raise ValueError(f"{path} is no part of an index, or damaged: {error}; {again}") from error
    if missing := [name for name in SCHEMA.names if name not in names]:
        raise ValueError(
            f"{path} is of an older index, without the column {', '.join(missing)}: index its shards again, into a "
            "new folder"
        )
    if wrong or schema.remove_metadata() != SCHEMA:
        raise ValueError(f"{path} {wrong or 'has columns of other types, as of another version'}; {again}")
    try:
        part = Part(**parse_object((schema.metadata or {})[b"jdiff"], "its metadata"))
        part.check(path.name)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no part of an index: {error}; {again}") from error
    return part


def parts_of(index: Path) -> dict[Path, Part]:
    """The parts of an index by file, in the order of the shards' names. Raises ValueError where there are none."""
    files = [path for path in sorted(index.glob("*.parquet")) if not path.name.startswith(".")]
    if not files:
        raise ValueError(f"index {index} holds nothing; `jdiff data index SHARDS -o {index}` makes it")
    parts = {path: read_part(path) for path in files}
    return dict(sorted(parts.items(), key=lambda item: item[1].shard))


def fingerprint(parts: Iterable[Part]) -> str:
    """SHA-256 of the rows of an index, wherever it lies and whenever it was made."""
    return hashlib.sha256(repr(sorted((part.shard, part.digest) for part in parts)).encode()).hexdigest()
