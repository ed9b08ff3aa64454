"""From an index to a view: the rows that an SQL condition chooses, in one file.

The condition is DuckDB's SQL over the columns of the index, over the fields of the examples' records, by their names,
over what scorers wrote, and over `duplicate` and `cluster` where the index has been deduplicated. Rejected rows are
never chosen. In the file's metadata stands all that it was made from.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa

from jdiff.atomic_files import replaced
from jdiff.data import captions
from jdiff.data.drawings import HELD_OUT_FRACTION
from jdiff.data.examples import caption_of
from jdiff.data.parts import Part, fingerprint, parts_of
from jdiff.data.recaption import read_captions
from jdiff.data.scores import Scored, scored
from jdiff.data.sealed import seal
from jdiff.data.sql import check_expression, connect, dedup_file, first_line
from jdiff.data.view import CHUNK, COLUMNS
from jdiff.data.view_check import check_rows
from jdiff.locks import locked

__all__ = ["Recipe", "dedup_file", "make_view"]

_SOME = 2**12
_MEMORY, _THREADS = "512MB", 2
"""What DuckDB may hold before it sorts and joins in files, and its threads: each needs a hundred MB or so, and rows
leave it one after the other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a view is made from; the same recipe on the same index gives the same view."""

    where: str = "true"
    """SQL: which rows."""
    weight: str | None = None
    """SQL: how often each row is drawn, relative to the others; every row once an epoch without it."""
    repairs: tuple[str, ...] = ()
    """Caption rules (`captions.REPAIRS`), applied in turn; a caption that they empty is rejected."""
    tags: str | None = None
    """SQL: the tags of each row, for templates of captions: text separated by commas, or a JSON list of texts."""
    captions: Path | None = None
    """A Parquet file with columns `shard`, `key` and `caption`, as a captioning model wrote it: its captions stand for
    those of the index, and `recaptioned` says in SQL where; null keeps the index's."""
    opt_out: tuple[str, ...] = ()
    """URLs, domains (subdomains included) and SHA-256 of images that are left out."""


def make_view(index: Path, out: Path, recipe: Recipe) -> dict[str, Any]:
    """Writes the view `out` and returns its metadata. Raises ValueError for SQL that does not fit, saying why."""
    captions.repair("", recipe.repairs)
    for field in ("where", "weight", "tags"):
        if (text := getattr(recipe, field)) is not None:
            check_expression(field, text)
    if not out.parent.is_dir():
        raise ValueError(f"out {out} is to be in a folder that does not exist")
    parts = parts_of(index)
    mark = fingerprint(parts.values())
    table, written = read_captions(recipe.captions) if recipe.captions else (None, None)
    # Beside the view, since a folder may get several at a time.
    place = out.with_name(f".{out.name}.lock")
    try:
        with locked(place, what="filtering"):
            return _written(index, out, recipe, parts, mark, table, written)
    finally:
        # Left there by a process that was killed, or by another that still holds it.
        with contextlib.suppress(OSError):
            place.rmdir()


def _written(
    index: Path,
    out: Path,
    recipe: Recipe,
    parts: dict[Path, Part],
    mark: str,
    table: pa.Table | None,
    written: str | None,
) -> dict[str, Any]:
    spilled = out.with_name(f"{out.name}.{os.getpid()}.spilled")
    connection = connect(index, parts, mark, spilled, table, memory=_MEMORY, threads=_THREADS)
    weight = f"CAST((\n{recipe.weight}\n) AS DOUBLE)" if recipe.weight is not None else "CAST(NULL AS DOUBLE)"
    url = '"url"' if any("url" in part.fields for part in parts.values()) else "NULL"
    tags = f"CAST((\n{recipe.tags}\n) AS VARCHAR)" if recipe.tags is not None else "NULL"
    made = f"{weight} AS weight_, {url} AS url_, {tags} AS tags"
    columns = f'shard, key, "offset", size, width, height, caption, sha256, recaptioned, {made}'
    query = f'SELECT {columns} FROM examples WHERE reject IS NULL AND (\n{recipe.where}\n) ORDER BY shard, "offset"'
    shards = [(part.shard, part.stamp) for part in parts.values()]
    number = {shard: place for place, (shard, _) in enumerate(shards)}
    described = dataclasses.asdict(recipe) | {"index": mark, "shards": shards}
    described["captions"] = written
    described["opt_out"] = {"sha256": _sha256(sorted(recipe.opt_out)), "lines": len(recipe.opt_out)}
    described["fingerprint"] = _sha256(sorted(described.items()))
    counts = collections.Counter(rows=0)
    try:
        with replaced(out) as unfinished:
            schema = COLUMNS.with_metadata({"jdiff": json.dumps(described)})
            with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, schema) as writer:
                chosen = _chosen(connection, query, recipe, number, counts)
                for chunk in _full(chosen, schema):
                    _check(index, chunk, len(shards))
                    writer.write_batch(chunk)
                # What was counted is known only now: it stands beside a last batch without rows.
                counted = {"jdiff": json.dumps(counts)}
                writer.write_batch(pa.RecordBatch.from_pylist([], schema=schema), custom_metadata=counted)
            if not counts["rows"]:
                used = sum(part.used for part in parts.values())
                raise ValueError(f"where {recipe.where!r} chooses none of the {used} rows")
            if table is not None and not counts["recaptioned"]:
                raise ValueError(
                    f"captions {recipe.captions} has {len(table)} rows and none of them is of a row that is chosen; "
                    f"`shard` and `key` must be those of the index, such as {shards[0][0]}"
                )
            seal(unfinished)
    except duckdb.Error as error:
        raise ValueError(_explained(error, recipe, connection, scored(index, parts), len(parts))) from error
    finally:
        connection.close()
        shutil.rmtree(spilled, ignore_errors=True)
    return described | dict(counts)


def _sha256(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _explained(
    error: Exception, recipe: Recipe, connection: "duckdb.DuckDBPyConnection", scores: list[Scored], shards: int
) -> str:
    columns = [row[0] for row in connection.execute("DESCRIBE examples").fetchall()]
    weight = f" and weight {recipe.weight!r}" if recipe.weight is not None else ""
    partly = [f"{one.name} for {shards - one.missing} of {shards} shards" for one in scores if one.missing]
    again = f"; score again, there is {', '.join(partly)}" if partly else ""
    return f"where {recipe.where!r}{weight}: {first_line(error)}; the columns are {', '.join(columns)}{again}"


def _check(index: Path, rows: pa.RecordBatch, shards: int) -> None:
    """Raises ValueError, naming the index, for rows that no view may hold: those of a part that was made up."""
    try:
        check_rows(rows, shards)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"index {index} holds rows that cannot be read: {error}; index its shards again") from error


def _chosen(
    connection: "duckdb.DuckDBPyConnection", query: str, recipe: Recipe, number: dict[str, int], counts: Any
) -> Iterator[dict[str, Any]]:
    refused = _opted_out(recipe.opt_out)
    for batch in connection.sql(query).to_arrow_reader(_SOME):
        for row in batch.to_pylist():
            weight, url, recaptioned = (row.pop(name) for name in ("weight_", "url_", "recaptioned"))
            if row["shard"] not in number:
                raise ValueError(f"a part of the index has a row of {row['shard']}, of which there is no part")
            row["caption"], fault = caption_of(None, {"caption": row["caption"]})
            row["caption"], row["tags"] = captions.repair(row["caption"], recipe.repairs), captions.tags_of(row["tags"])
            if not row["caption"]:
                counts[f"rejected: {fault or 'empty caption after repair'}"] += 1
                continue
            if refused(url, row["sha256"]):
                counts["rejected: opted out"] += 1
                continue
            if recipe.weight is not None and not (weight is not None and 0 <= weight < float("inf")):
                where = f"{row['shard']}, {row['key']}"
                raise ValueError(
                    f"weight {recipe.weight!r} must be a number from 0 on in every row; {weight} in {where}"
                )
            if weight == 0:
                counts["rejected: weight 0"] += 1
                continue
            # By content, so that copies of an image are on one side of the split.
            content = row["sha256"] or hashlib.sha256(f"{row['shard']}/{row['key']}".encode()).digest()
            counts["rows"] += 1
            counts["recaptioned"] += recaptioned
            yield row | {
                "shard": number[row["shard"]],
                "weight": weight,
                "held_out": int.from_bytes(content[:8]) < HELD_OUT_FRACTION * 2**64,
            }


def _full(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Batches of `CHUNK` rows, and the rest; made of smaller ones, since rows as objects of Python take much memory."""
    while some := list(itertools.islice(rows, _SOME)):
        parts = [pa.RecordBatch.from_pylist(some, schema=schema)]
        while len(parts) * _SOME < CHUNK and (some := list(itertools.islice(rows, _SOME))):
            parts.append(pa.RecordBatch.from_pylist(some, schema=schema))
        yield pa.concat_batches(parts)


def _opted_out(lines: Sequence[str]) -> Callable[[Any, bytes | None], bool]:
    """Whether an example's URL, domain or hash is among `lines`."""
    listed = {line.strip().lower() for line in lines} - {""}

    def refused(url: Any, digest: bytes | None) -> bool:
        if digest is not None and digest.hex() in listed:
            return True
        if not listed or not isinstance(url, str):
            return False
        try:
            host = (urlsplit(url).hostname or "").lower().split(".")
        except ValueError:
            host = []
        return url.lower() in listed or any(".".join(host[n:]) in listed for n in range(len(host)))

    return refused
