"""The table that img2dataset leaves beside a shard: `00000.parquet` beside `00000.tar`, one row a URL that was tried.

Its columns are fields of the examples' records, by `key`. Rows whose `status` is not "success" have no example in the
shard; why, `error_message` says in words that hold names of hosts, of which a few kinds are made.
"""

import datetime
import io
import math
import re
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jdiff.data.reader import Reader, stamp

_MAX_ROWS, _MAX_BYTES = 2**20, 2**30
_HTTP = re.compile(r"HTTP Error (\d{3})")


class Side(NamedTuple):
    """What the table says."""

    fields: dict[str, dict[str, Any]]
    """Of each example, by its key."""
    failed: dict[str, str]
    """Why there is no example, by the key that it would have."""


def side_stamp(shard: str) -> str:
    """Changes with the content of the table beside a shard; "" where there is none."""
    try:
        return stamp(_beside(shard))
    except FileNotFoundError:
        return ""


def read_side(shard: str) -> Side:
    """The table beside a shard; nothing where there is none.

    Raises ValueError, naming the file, where it is no such table, and OSError where it cannot be read.
    """
    if not side_stamp(shard):
        return Side({}, {})
    name = _beside(shard)
    with Reader(name) as reader:
        if reader.length > _MAX_BYTES:
            raise ValueError(f"{name}, beside {shard}, has {reader.length} bytes; at most {_MAX_BYTES} are read")
        data = reader.read(0, reader.length)
    try:
        rows = read_parquet(data, _MAX_ROWS).to_pylist()
        keys = [row.pop("key") for row in rows]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{name}, beside {shard}, must be a table with a column key, as img2dataset writes it: {error}; write it "
            f"anew, or remove it"
        ) from error
    failed = {
        str(key): _reason(str(row["status"]), str(row.get("error_message") or ""))
        for key, row in zip(keys, rows, strict=True)
        if row.get("status") not in (None, "success")
    }
    fields = {str(key): _plain(row) for key, row in zip(keys, rows, strict=True)}
    return Side(fields, failed)


def read_parquet(data: bytes, most: int | None) -> pa.Table:
    """The table in a Parquet file of strangers, checked in full; of at most `most` rows, if given. A small file may
    hold any number of equal rows. Raises ValueError or `pa.ArrowException` where it cannot be read."""
    file = pq.ParquetFile(io.BytesIO(data))
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    rows, size = (sum(getattr(group, name) for group in groups) for name in ("num_rows", "total_byte_size"))
    if size > _MAX_BYTES or (most is not None and rows > most):
        raise ValueError(f"it has {rows} rows of {size} bytes; at most {most or 'any'} of {_MAX_BYTES} are read")
    table = file.read()
    table.validate(full=True)
    return table


def _beside(shard: str) -> str:
    folder, slash, last = shard.rpartition("/")
    return folder + slash + last.partition(".")[0] + ".parquet"


def _plain(value: Any) -> Any:
    """As JSON holds it, without what is empty, and without bytes."""
    if isinstance(value, dict):
        plain = {name: _plain(inner) for name, inner in value.items() if not isinstance(inner, bytes)}
        return {name: inner for name, inner in plain.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    return value if isinstance(value, str | int | float) else None


def _reason(status: str, error: str) -> str:
    if status != "failed_to_download":
        return "not resized" if status == "failed_to_resize" else "not downloaded: other status"
    if found := _HTTP.search(error):
        return f"not downloaded: HTTP {found[1]}"
    return "not downloaded: timed out" if "timed out" in error.lower() else "not downloaded"
