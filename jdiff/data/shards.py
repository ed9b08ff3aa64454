"""Examples of a view by offset: shards are opened when first needed, and those that changed since are told apart.

A row with the SHA-256 of its image is proved by that. Without one, as in an index of headers alone, the shard must have
the stamp that the index saw.
"""

import collections
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from jdiff.data.array_records import RecordReader, opened
from jdiff.data.headers import RejectError
from jdiff.data.order import mix
from jdiff.data.patience import begun
from jdiff.data.reader import Reader, is_same

_OPEN = 256
"""Shards held open at once."""
_AT_ONCE = 64
"""Reads that are waited for together, by each thread or process that makes batches."""
_TRIES = 32
_SILENCE = 600.0
"""Seconds for which a shard that did not answer is not asked again: each answer that does not come is a long wait."""
T = TypeVar("T")


def readable(row: int, rows: np.ndarray, read: Callable[[int], T], shard: Callable[[int], str]) -> tuple[T, int, str]:
    """What `read` gives for `row`, that row, and "".

    Where `read` raises `RejectError`, another of `rows` stands in, which the number of `row` alone decides: what was
    read, the row that it is of, and why it is not the one asked for. Raises ValueError, naming the `shard` of the last,
    where many in its place cannot be read either.
    """
    tried, reason = row, ""
    for attempt in range(_TRIES):
        if attempt:
            tried = int(rows[int(mix(np.array([row * _TRIES + attempt], np.uint64))[0] % np.uint64(len(rows)))])
        try:
            return read(tried), tried, reason
        except RejectError as why:
            reason = reason or str(why)
    raise ValueError(
        f"row {row} and {_TRIES - 1} in its place cannot be read: {reason}; the last was of {shard(tried)}"
    )


def on_their_way(reads: Iterable[T]) -> Iterator[T]:
    """Each of `reads`, which begins when it is taken from there: `_AT_ONCE` are taken before they are needed."""
    waiting: collections.deque[T] = collections.deque()
    for one in reads:
        waiting.append(one)
        if len(waiting) > _AT_ONCE:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


class Shards:
    """The shards of a view, (name, stamp) each, for reading in threads and in processes that it is sent to."""

    def __init__(self, shards: list[tuple[str, str]]):
        self._shards = shards
        self._readers: collections.OrderedDict[int, Reader | RecordReader] = collections.OrderedDict()
        self._unchanged: dict[int, bool] = {}
        """Of open shards, whether they have the stamp that the index saw; asked for rows without a digest alone."""
        self._silent: dict[int, float] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        return Shards, (self._shards,)

    def name(self, row: dict[str, Any]) -> str:
        """The shard that a row is of."""
        return self._shards[row["shard"]][0]

    def read(self, row: dict[str, Any]) -> bytes:
        """The image of a row of a view. Raises `RejectError` where the shard is gone, silent or changed."""
        if time.monotonic() < self._silent.get(row["shard"], 0.0):
            raise RejectError("shard cannot be read")
        try:
            reader = self._reader(row["shard"])
            if not row["sha256"] and not self._is_unchanged(row["shard"], reader):
                raise RejectError("shard has changed")
            data = reader.read(row["offset"], row["size"])
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._silent[row["shard"]] = time.monotonic() + _SILENCE
            raise RejectError("shard cannot be read") from error
        return _checked(data, row)

    def begin(self, row: dict[str, Any]) -> Callable[[], bytes]:
        """`read`, begun: what is called gives the bytes, or raises. What must be waited for is waited for together."""
        reader = self._readers.get(row["shard"])
        known = row["sha256"] or self._unchanged.get(row["shard"])
        data = reader.ready(row["offset"], row["size"]) if known and isinstance(reader, Reader) else None
        return begun(lambda: self.read(row)).result if data is None else lambda: _checked(data, row)

    def _reader(self, shard: int) -> Reader | RecordReader:
        with self._lock:
            reader = self._readers.get(shard)
        if reader is None:
            # Not under the lock: others need not wait. Where two open it at once, one of them is let go.
            reader = opened(self._shards[shard][0])
            self._unchanged.pop(shard, None)
        with self._lock:
            reader = self._readers.setdefault(shard, reader)
            self._readers.move_to_end(shard)
            if len(self._readers) > _OPEN:
                # A reader that is pushed out closes its file when the last thread that reads from it lets it go.
                self._readers.popitem(last=False)
            return reader

    def _is_unchanged(self, shard: int, reader: Reader | RecordReader) -> bool:
        """Whether a shard has the stamp that the index recorded, if any."""
        if shard not in self._unchanged:
            recorded = self._shards[shard][1]
            self._unchanged[shard] = not recorded or is_same(recorded, reader.stamp)
        return self._unchanged[shard]


def _checked(data: bytes, row: dict[str, Any]) -> bytes:
    if len(data) < row["size"] or (row["sha256"] and hashlib.sha256(data).digest() != row["sha256"]):
        raise RejectError("shard has changed")
    return data
