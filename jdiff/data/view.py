"""A view: rows of an index, in one file that training maps into memory; `filter.py` makes it.

The file (Arrow IPC, uncompressed) holds what reading an example needs, in the order of shard and offset; random access
costs no memory that grows with it. It is sealed (`sealed`), and checked in full before anything of it is used.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from jdiff.data.sealed import check_seal
from jdiff.data.view_check import check_rows, checked_shards
from jdiff.json_files import parse_object

CHUNK = 2**16
"""Rows in a record batch of a view: all but the last are full, so a row's place follows from its number."""
COLUMNS = pa.schema(
    {
        "shard": pa.int32(),
        "key": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "caption": pa.string(),
        "tags": pa.list_(pa.string()),
        "sha256": pa.binary(32),
        "held_out": pa.bool_(),
        "weight": pa.float64(),
    }
)


class View:
    """A view that is open: columns as arrays, rows by number. It can be sent to another process.

    Raises ValueError where the file is no view, has changed since it was written, or holds what no view may hold.
    """

    def __init__(self, path: str | Path):
        self._open(path, checked=None)

    def _open(self, path: str | Path, checked: tuple[int, int] | None) -> None:
        self.path = str(path)
        again = f"`jdiff data filter INDEX -o {path}` writes it anew"
        try:
            status = os.stat(path)
            self._stamp = status.st_size, status.st_mtime_ns
            if self._stamp != checked and (wrong := check_seal(path)):
                raise ValueError(f"it {wrong}")
            self._batches, metadata, counts = _mapped(self.path)
            self.described: dict[str, Any] = parse_object(metadata[b"jdiff"], "its metadata")
            self.counts: dict[str, int] = parse_object(counts[b"jdiff"], "its counts")
            """Its rows, and those left out, by reason."""
            self.shards = checked_shards(self.described["shards"])
            self.fingerprint: str = self.described["fingerprint"]
            if self._stamp != checked:
                self._check()
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"view {path} cannot be read: {told}; {again}") from error
        # Columns by name: a batch makes each anew when asked, which takes longer than reading a value.
        self._columns = [{name: batch.column(name) for name in COLUMNS.names} for batch in self._batches]

    def _check(self) -> None:
        if not isinstance(self.fingerprint, str) or not all(type(count) is int for count in self.counts.values()):
            raise ValueError("its fingerprint must be a text, and its counts numbers")
        if any(batch.num_rows != CHUNK for batch in self._batches[:-1]):
            raise ValueError(f"all but its last batch must have {CHUNK} rows")
        total, without = 0.0, 0
        for batch in self._batches:
            check_rows(batch, len(self.shards))
            total += float(batch.column("weight").drop_null().to_numpy().sum())
            without += batch.column("weight").null_count
        if without not in (0, len(self)) or (not without and len(self) and not 0 < total < np.inf):
            raise ValueError("its weights must be in every row or in none, with a sum that is a number above 0")
        if len(self) != self.counts.get("rows"):
            raise ValueError(f"it has {len(self)} rows, and {self.counts.get('rows')} were written")

    def __reduce__(self) -> Any:
        return _again, (self.path, self._stamp)

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self._batches)

    def column(self, name: str) -> np.ndarray:
        """All values of a column of numbers."""
        return np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches])

    def row(self, number: int, names: Sequence[str] = COLUMNS.names) -> dict[str, Any]:
        """The columns `names` of one row; `shard` is a place in `shards`."""
        columns, place = self._columns[number // CHUNK], number % CHUNK
        return {name: columns[name][place].as_py() for name in names}

    def rows(self, numbers: np.ndarray, names: Sequence[str] = COLUMNS.names) -> list[dict[str, Any]]:
        """As `row` of each of `numbers`, for a whole batch in a tenth of the time."""
        found: list[dict[str, Any]] = [{} for _ in numbers]
        chunks, places = np.divmod(numbers, CHUNK)
        for chunk in set(chunks.tolist()):
            wanted = np.flatnonzero(chunks == chunk)
            taken = [self._columns[chunk][name].take(pa.array(places[wanted])).to_pylist() for name in names]
            for number, *values in zip(wanted.tolist(), *taken, strict=True):
                found[number] = dict(zip(names, values, strict=True))
        return found


def _again(path: str, checked: tuple[int, int]) -> View:
    """The view in another process, which need not check a file that has not changed since."""
    view = View.__new__(View)
    view._open(path, checked)
    return view


def _mapped(path: str) -> tuple[list[pa.RecordBatch], dict[bytes, bytes], dict[bytes, bytes]]:
    """The batches of a view, and the metadata of the whole and of the last."""
    reader = pa.ipc.open_file(pa.memory_map(path))
    if reader.schema.remove_metadata() != COLUMNS:
        raise ValueError("it has other columns, as of another version")
    *batches, (_, counts) = (reader.get_batch_with_custom_metadata(n) for n in range(reader.num_record_batches))
    return [batch for batch, _ in batches], reader.schema.metadata or {}, counts or {}
