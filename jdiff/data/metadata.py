"""Captions of a folder of images as Hugging Face's ImageFolder keeps them: `metadata.csv`, `.jsonl` or `.parquet`.

Each row names an image by `file_name`, relative to the folder that the table lies in, and has its caption under
`caption` or `text`.
"""

import csv
import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jdiff.data.walk import path_of

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_CAPTIONS = ("caption", "text")


def table_key(name: str) -> str:
    """The name under which tables and files meet: macOS writes letters and their accents apart (NFD), others do not."""
    return unicodedata.normalize("NFC", name)


def is_table(name: str) -> bool:
    """Whether a file is a table of captions, by its name."""
    return posixpath.basename(name) in NAMES


def captions_in(root: Path, names: Iterable[str]) -> dict[str, str] | None:
    """The captions in the tables among the files `names` below `root`, by `table_key` of the image's name; None where
    there is no table.

    An empty caption is a caption. Raises ValueError, naming the table and the line or row, where one cannot be read,
    lacks a field, or names an image twice.
    """
    tables = [name for name in names if is_table(name)]
    if not tables:
        return None
    captions: dict[str, str] = {}
    for table in tables:
        path, kind = root / table, "row" if table.endswith(".parquet") else "line"
        for number, row in _rows(root, table) if kind == "row" else _lines(root, table):
            where = f"{path}, {kind} {number}"
            name, caption = (
                row.get("file_name"),
                next((row[key] for key in _CAPTIONS if row.get(key) is not None), None),
            )
            if None in row:
                raise ValueError(f"{where}, has more fields than the header: a caption with commas must be quoted")
            if not isinstance(name, str) or not isinstance(caption, str):
                told = ", ".join(f"{key}={value!r:.40}" for key, value in row.items())
                raise ValueError(f"{where}, must have file_name, and caption or text, as texts; it has {told}")
            full = table_key(posixpath.normpath(posixpath.join(posixpath.dirname(table), name)))
            if full in captions:
                raise ValueError(f"{where}: {full} has a caption already")
            captions[full] = caption.strip()
    return captions


def _lines(root: Path, table: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    try:
        with _opened(root, table, encoding="utf-8-sig", newline="") as file:
            if table.endswith(".csv"):
                # Strict: a file that ends within quotes has lost its end.
                yield from enumerate(csv.DictReader(file, strict=True), 2)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    yield number, row
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error, RecursionError) as error:
        raise ValueError(f"{root / table} cannot be read: {error}") from error


def _rows(root: Path, table: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    path = root / table
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} needs the extra `data`: pip install 'jdiff[data]'") from error
    try:
        with _opened(root, table, mode="rb") as opened, pq.ParquetFile(opened) as file:
            # Other columns may hold anything, at any length.
            there = file.schema_arrow.names
            wanted = [name for name in ("file_name", *_CAPTIONS) if name in there]
            if wanted[:1] != ["file_name"] or len(wanted) < 2:
                raise ValueError(f"{path} must have file_name, and caption or text; it has {', '.join(there)}")
            rows = (row for batch in file.iter_batches(columns=wanted) for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _opened(root: Path, table: str, mode: str = "r", **options: Any) -> Any:
    return (root / path_of(table)).open(mode, **options)
