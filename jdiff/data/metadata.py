"""Captions of a folder of images as Hugging Face's ImageFolder keeps them: `metadata.csv`, `.jsonl` or `.parquet`.

Each row names an image by `file_name`, relative to the folder that the table lies in, and has its caption under
`caption` or `text`.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def captions_in(root: Path) -> dict[str, str]:
    """The captions of the images below `root`, by their names relative to it; empty where there is no table.

    Raises ValueError, naming the table and the line or row, where one cannot be read, lacks a field, or names an image
    twice.
    """
    captions: dict[str, str] = {}
    for path in sorted(path for name in NAMES for path in root.rglob(name) if path.is_file()):
        kind = "row" if path.suffix == ".parquet" else "line"
        for number, row in _rows(path) if kind == "row" else _lines(path):
            name, caption = row.get("file_name"), row.get("caption") or row.get("text")
            if not isinstance(name, str) or not isinstance(caption, str):
                raise ValueError(
                    f"{path}, {kind} {number}, must have file_name, and caption or text; it has "
                    f"{', '.join(map(str, row))}"
                )
            full = (PurePosixPath(path.parent.relative_to(root).as_posix()) / name).as_posix()
            if full in captions:
                raise ValueError(f"{path}, {kind} {number}: {full} has a caption already")
            captions[full] = caption.strip()
    return captions


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from enumerate(csv.DictReader(file), 2)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    yield number, row
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} needs the extra `data`: pip install 'jdiff[data]'") from error
    try:
        with pq.ParquetFile(path) as file:
            # Other columns may hold anything, at any length.
            there = file.schema_arrow.names
            wanted = [name for name in ("file_name", "caption", "text") if name in there]
            if wanted[:1] != ["file_name"] or len(wanted) < 2:
                raise ValueError(f"{path} must have file_name, and caption or text; it has {', '.join(there)}")
            rows = (row for batch in file.iter_batches(columns=wanted) for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
