"""A view: rows of an index, in one file that training maps into memory; `filter.py` makes it.

The file (Arrow IPC, uncompressed) holds what reading an example needs, in the order of shard and offset; random access
costs no memory that grows with it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

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
    """A view that is open: columns as arrays, rows by number. It can be sent to another process."""

    def __init__(self, path: str | Path):
        self.path = str(path)
        try:
            self._batches, metadata, counts = _mapped(self.path)
            self.described: dict[str, Any] = json.loads(metadata[b"jdiff"])
            self.counts: dict[str, int] = json.loads(counts[b"jdiff"])
            """Its rows, and those left out, by reason."""
        except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"view {path} cannot be read; `jdiff data filter INDEX -o {path}` makes one") from error
        # Columns by name: a batch makes each anew when asked, which takes longer than reading a value.
        self._columns = [{name: batch.column(name) for name in COLUMNS.names} for batch in self._batches]
        self.shards: list[tuple[str, str]] = [tuple(shard) for shard in self.described["shards"]]
        self.fingerprint: str = self.described["fingerprint"]

    def __reduce__(self) -> Any:
        return View, (self.path,)

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


def _mapped(path: str) -> tuple[list[pa.RecordBatch], dict[bytes, bytes], dict[bytes, bytes]]:
    """The batches of a view, and the metadata of the whole and of the last."""
    reader = pa.ipc.open_file(pa.memory_map(path))
    if reader.schema.names != COLUMNS.names:
        raise ValueError("it has other columns, as of another version")
    *batches, (_, counts) = (reader.get_batch_with_custom_metadata(n) for n in range(reader.num_record_batches))
    return [batch for batch, _ in batches], reader.schema.metadata or {}, counts
