"""An index: a folder with one Parquet file a shard, one row an example, used or rejected by a named reason.

A part is written whole or not at all and says in its own metadata which shard it describes, as it was when read. So an
index grows by indexing more shards, goes on where it was stopped, and reads a shard again only where that has changed.
How far a shard is read is `depth`: "headers" of members and images, "bytes" for the SHA-256 of every image, "pixels"
for its thumbnail and for rejecting what cannot be decoded.
"""

import collections
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from jdiff.atomic_files import remove_unfinished, replaced
from jdiff.data.array_records import ELSEWHERE, RecordReader, is_records, opened, record_examples
from jdiff.data.captions import script_of
from jdiff.data.decode import decode
from jdiff.data.examples import MAX_CAPTION, MAX_RECORD, Example, caption_of, examples, record_of
from jdiff.data.headers import RejectError, read_header
from jdiff.data.likeness import thumbnail
from jdiff.data.parts import SCHEMA, Depth, Part, fingerprint, part_name, parts_of, read_part, told
from jdiff.data.reader import Ahead, Window, absolute, stamp
from jdiff.data.sealed import seal
from jdiff.data.side_files import read_side, side_stamp
from jdiff.data.stores import check_url, is_url
from jdiff.locks import locked

__all__ = ["build", "fingerprint", "index_shard", "part_name", "parts_of", "read_part", "told"]

LEAST_SEEN = 100
"""A rate of rejection says something from this many examples on; before, it is looked at when all are seen."""
_THUMBNAIL_FROM = (64, 64)


def build(
    shards: list[str],
    out: Path,
    *,
    depth: Depth = "pixels",
    workers: int = 1,
    max_reject_rate: float = 0.2,
    failed: bool = False,
    progress: Callable[[Part, int, int], None] = lambda part, done, total: None,
) -> list[Part]:
    """Indexes `shards` into the folder `out`, those alone that it does not hold yet. Returns the parts of all `shards`.

    With `failed`, what img2dataset could not download counts as rejected, where it left a table beside the shard that
    says so. `progress` is told every new part, and how many of how many are done. Raises ValueError where a shard does
    not exist or is named twice, and, naming the shard, where more than `max_reject_rate` of the examples are rejected;
    parts that are written by then stay. So it does where another process writes into `out`.
    """
    if depth not in get_args(Depth):
        raise ValueError(f"depth must be one of {', '.join(get_args(Depth))}; got {depth!r}")
    if not 0 <= max_reject_rate <= 1:
        raise ValueError(f"max_reject_rate must be in [0, 1]; got {max_reject_rate}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    names = [absolute(shard) for shard in shards]
    for name in names:
        if not is_records(name):
            check_url(name)
    if len(set(names)) < len(names) or not names:
        twice = [name for name, count in collections.Counter(names).items() if count > 1]
        raise ValueError(f"shards must be named once each; got {', '.join(twice) or 'none'}")
    if remote := [name for name in names if is_records(name) and is_url(name)]:
        raise ValueError(f"shard {remote[0]} is an ArrayRecord file, which must be a local path: {ELSEWHERE}")
    stamps = {name: _stamp(name, failed) for name in names}
    if out.exists() and not out.is_dir():
        raise ValueError(f"index {out} must be a folder; it is a file")
    with locked(out, what="indexing"):
        remove_unfinished(out)
        return _built(names, stamps, out, depth, workers, max_reject_rate, failed, progress)


def _built(
    names: list[str],
    stamps: dict[str, str],
    out: Path,
    depth: Depth,
    workers: int,
    max_reject_rate: float,
    failed: bool,
    progress: Callable[[Part, int, int], None],
) -> list[Part]:
    kept = {name: part for name in names if (part := _fresh(out / part_name(name), stamps[name], depth))}
    parts, totals = [], collections.Counter()
    for name, part in zip(names, _made(names, kept, out, depth, failed, workers), strict=True):
        parts.append(part)
        totals.update(seen=part.seen, used=part.used)
        if name not in kept:
            progress(part, len(parts), len(names))
        enough = totals["seen"] >= LEAST_SEEN or len(parts) == len(names)
        rejected = totals["seen"] - totals["used"]
        if enough and rejected > max_reject_rate * totals["seen"]:
            raise ValueError(
                f"{rejected} of {totals['seen']} examples are rejected, more than max_reject_rate {max_reject_rate} "
                f"allows; the last shard, {name}, has {part.seen - part.used} of {part.seen}: {told(part.rejected)}"
            )
    return parts


def _stamp(shard: str, failed: bool) -> str:
    try:
        return _mark(shard, failed)
    except OSError as error:
        raise ValueError(f"shard {shard} cannot be read: {error}") from error


def _mark(shard: str, failed: bool) -> str:
    """Changes with the rows of a shard: with its content, and that of the table beside it."""
    # First, since its errors name the shard.
    own, side = stamp(shard), side_stamp(shard)
    return own + (f"+{side}" if side else "") + ("+failed" if side and failed else "")


def _fresh(path: Path, current: str, depth: str) -> Part | None:
    part = read_part(path) if path.exists() else None
    return part if part and (part.stamp, part.depth) == (current, depth) else None


def _made(
    names: list[str], kept: dict[str, Part], out: Path, depth: Depth, failed: bool, workers: int
) -> Iterator[Part]:
    missing = [name for name in names if name not in kept]
    if workers == 1 or len(missing) < 2:
        yield from (kept.get(name) or index_shard(name, out, depth, failed) for name in names)
        return
    # Spawned, since a fork would copy the locks of threads that are not there to release them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context, initializer=_worker) as pool:
        futures = {name: pool.submit(index_shard, name, out, depth, failed) for name in missing}
        try:
            yield from (kept[name] if name in kept else futures[name].result() for name in names)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _worker() -> None:
    """A worker ends with the process that started it, even when that is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def index_shard(shard: str, out: Path, depth: Depth, failed: bool) -> Part:
    """Reads one shard, and the table beside it, and writes its part."""
    rows, counts, before = [], collections.Counter(), "unread"
    try:
        before = _mark(shard, failed)
        side = read_side(shard)
        with warnings.catch_warnings(), opened(shard) as reader:
            # Pillow warns of damaged Exif data and the like; what matters of it is a reason in the index.
            warnings.simplefilter("ignore")
            # A remote store is asked rarely and for much; a local file for what is needed. Headers run one example
            # ahead of contents, so each has a block of its own.
            block = 2**16 if is_url(shard) else 0
            headers, contents = Ahead(reader, block), Ahead(reader, block)
            records = isinstance(reader, RecordReader)
            for example in record_examples(reader) if records else examples(headers.read, reader.length):
                example.record = side.fields.get(example.key, {}) | example.record
                rows.append(_row(example, contents.read, shard, depth, counts))
            counts["read"] = reader.bytes_read
            if failed:
                there = {row["key"] for row in rows}
                rows += [
                    _rejected(shard, reason) | {"key": key, "json": _json(side.fields[key])}
                    for key, reason in side.failed.items()
                    if key not in there
                ]
            if _mark(shard, failed) != before:
                rows = [_rejected(shard, "shard changed while it was read")]
    except OSError:
        rows = [_rejected(shard, "shard cannot be read")]
    reject = collections.Counter(row["reject"] for row in rows if row["reject"])
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    part = Part(
        shard=shard,
        stamp=before,
        depth=depth,
        seen=len(rows),
        used=len(rows) - sum(reject.values()),
        rejected=dict(sorted(reject.items())),
        digest=hashlib.sha256(repr([tuple(row.values()) for row in rows]).encode()).hexdigest(),
        fields=_fields(rows),
        bytes_read=counts["read"],
        bytes_needed=counts["needed"],
    )
    table = table.replace_schema_metadata({"jdiff": json.dumps(dataclasses.asdict(part))})
    with replaced(out / part_name(shard)) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")
        seal(unfinished)
    return part


def _rejected(shard: str, reason: str) -> dict[str, Any]:
    return dict.fromkeys(SCHEMA.names) | {"shard": shard, "key": "", "reject": reason}


def _row(example: Example, read: Callable[[int, int], bytes], shard: str, depth: Depth, counts: Any) -> dict[str, Any]:
    """One row of the index."""
    row = _rejected(shard, example.fault or "") | {"key": example.key}
    if example.fault:
        return row
    try:
        _describe(row, example, read, depth, counts)
        row["reject"] = None
    except RejectError as reason:
        row["reject"] = str(reason)
    return row


def _describe(row: dict[str, Any], example: Example, read: Callable[[int, int], bytes], depth: Depth, counts: Any):
    image = example.parts["image"]
    row["offset"], row["size"] = image.offset, image.size
    text, record = (example.parts.get(kind) for kind in ("txt", "json"))
    # One byte more than is allowed tells what is too long without reading it all.
    parts = [
        read(part.offset, min(part.size, most + 1)) if part else None
        for part, most in ((text, MAX_CAPTION), (record, MAX_RECORD))
    ]
    counts["needed"] += sum(len(part) for part in parts if part)
    fields, fault = record_of(parts[1]) if parts[1] is not None else ({}, None)
    if fault:
        raise RejectError(fault)
    fields = example.record | fields
    row["json"] = _json(fields)
    if len((row["json"] or "").encode()) > MAX_RECORD:
        raise RejectError("json is too large")
    caption, fault = caption_of(parts[0], fields)
    if fault:
        raise RejectError(fault)
    row["caption"], row["script"] = caption, script_of(caption)
    if depth == "headers":
        file: Any = io.BufferedReader(Window(read, image.offset, image.size), 512)
        counts["needed"] += min(image.size, 512)
        row["format"], row["width"], row["height"], _ = read_header(file)
        return
    data = read(image.offset, image.size)
    counts["needed"] += len(data)
    row["sha256"] = hashlib.sha256(data).digest()
    row["format"], row["width"], row["height"], _ = read_header(io.BytesIO(data))
    if depth == "pixels":
        pixels, (row["width"], row["height"]) = decode(data, _THUMBNAIL_FROM)
        row["thumbnail"] = thumbnail(pixels)


def _json(fields: dict[str, Any]) -> str | None:
    return json.dumps(fields, ensure_ascii=False) if fields else None


def _fields(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What each field of the records holds throughout the shard; nulls say nothing."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        for name, value in json.loads(row["json"] or "{}").items():
            if value is not None:
                kinds = {bool: "bool", int: "number", float: "number", str: "text"}
                found[name].add(kinds.get(type(value), "other"))
    return {name: kinds.pop() if len(kinds) == 1 else "other" for name, kinds in sorted(found.items())}
