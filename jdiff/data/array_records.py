"""ArrayRecord files as shards: records by number, each the bytes of a `tf.train.Example`.

The features are those that img2dataset writes to TFRecords: the image under `jpg`, `jpeg`, `png` or `webp` (or `image`,
as in tfds), `txt` or else `caption`, `key`, and any others, which are the fields of the example's record; `json` is
read as the member of a tar is. Protocol buffers' wire format is read here (protobuf.dev, "Encoding"): nothing but a
parser of our own says where in a record the image lies.

A part of a record has an offset as a part of a tar has: `SPAN` times the record's number, and its place within. So an
index, a view and a stream need not know which of the two a shard is. Records compressed in groups are read slowly at
random; write them with "group_size:1". The package that reads them checks what it reads by checksums, and has withstood
damaged files; what it does not check is how much memory a record takes, so that is read here first, from the chunks'
headers ("Riegeli/records file format specification").
"""

import contextlib
import functools
import math
import os
import re
import struct
from collections.abc import Iterator
from typing import Any

from jdiff.data.examples import IMAGES, PICKLES, Example
from jdiff.data.patience import within
from jdiff.data.reader import Reader, stamp
from jdiff.data.stores import is_url
from jdiff.data.tar import Member, Read
from jdiff.data.walk import path_of

SPAN = 2**28
ELSEWHERE = "copy it to a disk and index the copy, or write tar shards, which are read by ranges from anywhere"
_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 2**16, 24, 40
_SIGNATURE = ord("s")
"""The type of the chunk that a Riegeli file begins with."""
_NAME = re.compile(r"\.array_?record(-\d+-of-\d+)?$")
_IMAGES = IMAGES | {"image", "image/encoded"}
_MAX_KEY = 1024


def is_records(shard: str) -> bool:
    """Whether a shard is an ArrayRecord file, by its name, as "a.array_record" or as tfds names them."""
    return _NAME.search(shard) is not None


def opened(shard: str) -> "Reader | RecordReader":
    """A shard of either kind. Raises OSError where it cannot be opened."""
    return RecordReader(shard) if is_records(shard) else Reader(shard)


class RecordReader:
    """An ArrayRecord file that is open: as `Reader`, for parts of records. Raises OSError where there is none."""

    def __init__(self, shard: str):
        from array_record.python.array_record_module import ArrayRecordReader

        self.bytes_read = 0
        self._shard = shard
        self._kept = (-1, b"")
        if is_url(shard):
            raise OSError(f"{shard} is an ArrayRecord file, which is read from a local path alone: {ELSEWHERE}")
        # Read as a file first: a pipe, or a file that is not there, is told apart as for any shard.
        with Reader(shard) as file:
            length = file.length
        self._records = within(lambda: ArrayRecordReader(os.fsencode(path_of(shard))), shard)
        if not self._records.ok():
            raise OSError(f"{shard} is no ArrayRecord file, or damaged")
        self.count: int = self._records.num_records()
        if self.count > length:
            raise OSError(f"{shard} has {length} bytes and claims {self.count} records")
        self.length = self.count * SPAN

    @property
    def stamp(self) -> str:
        """As the shard is now, not as it was when opened."""
        return stamp(self._shard)

    def is_bomb(self) -> bool:
        """Whether some of the records, as they are compressed together, take more than `SPAN` bytes of memory."""
        return self._survey[0] > SPAN

    def is_several(self) -> bool:
        """Whether the shard is several files, one behind the other: the package reads the last alone."""
        return self._survey[1] > 1

    @functools.cached_property
    def _survey(self) -> tuple[int, int]:
        """The memory that the largest chunk takes, and how many chunks begin a file."""
        largest = files = 0
        with Reader(self._shard) as file:
            for kind, decoded in chunks(file.read, file.length):
                largest, files = max(largest, decoded), files + (kind == _SIGNATURE)
                if largest > SPAN:
                    break
        return largest, files

    def record(self, number: int) -> bytes:
        """One record. Raises OSError where it is damaged."""
        kept, data = self._kept
        if kept != number:
            try:
                (data,) = within(lambda: self._records.read([number]), self._shard)
            except (RuntimeError, IndexError) as error:
                raise OSError(f"record {number} of {self._shard} cannot be read: {error}") from error
            self._kept = number, data
            self.bytes_read += len(data)
        return data

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on, within one record; fewer where it ends."""
        number, place = divmod(offset, SPAN)
        if number >= self.count or length <= 0:
            return b""
        return self.record(number)[place : place + length]

    def close(self) -> None:
        """Gives the file back; the reader is not used again."""
        # It says here once more what it said of records that are damaged.
        with contextlib.suppress(RuntimeError):
            self._records.close()

    def __enter__(self) -> "RecordReader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def record_examples(reader: RecordReader) -> Iterator[Example]:
    """The examples of an ArrayRecord file in order; every record is one."""
    seen: set[str] = set()
    if reader.is_bomb():
        yield Example(key="", parts={}, fault="records take too much memory")
        return
    for number in range(reader.count):
        example = Example(key=f"{number:09}", parts={})
        try:
            data = reader.record(number)
            if len(data) > SPAN:
                raise _DamageError("record is too large")
            _fill(example, data, number * SPAN)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            example.fault = "record cannot be read"
        except _DamageError as damage:
            example.fault = str(damage)
        if example.fault is None and "image" not in example.parts:
            example.fault = "no image"
        if example.key in seen:
            example.fault = "duplicate key"
        seen.add(example.key)
        yield example
    if not reader.count:
        yield Example(key="", parts={}, fault="empty shard")
    elif reader.is_several():
        yield Example(key="", parts={}, fault="several ArrayRecord files in one, of which the last is read")


def decoded_sizes(read: Read, length: int) -> Iterator[int]:
    """What each chunk of a Riegeli file takes when decoded."""
    return (decoded for _, decoded in chunks(read, length))


def chunks(read: Read, length: int) -> Iterator[tuple[int, int]]:
    """Type and decoded size of each chunk of a Riegeli file, from the chunks' headers, up to where there is none."""
    at = 0
    while at < length:
        place = at if at % _BLOCK else at + _BLOCK_HEADER
        # A block's header, which stands between, is no part of the chunk's.
        data = read(place, _CHUNK_HEADER + _BLOCK_HEADER)
        border = -place % _BLOCK
        if 0 < border < _CHUNK_HEADER:
            data = data[:border] + data[border + _BLOCK_HEADER :]
        if len(data) < _CHUNK_HEADER:
            return
        _, size, _, records, decoded = struct.unpack("<5Q", data[:_CHUNK_HEADER])
        yield records & 0xFF, decoded
        used, whole = _BLOCK - _BLOCK_HEADER, _CHUNK_HEADER + size
        end = at + whole + (whole + (at + used - 1) % _BLOCK) // used * _BLOCK_HEADER
        # Each record has a place of its own, even where it takes no byte.
        least = at + (records >> 8)
        at = max(end, least + max(_BLOCK - least % _BLOCK - (used - 1), 0) if least % _BLOCK else least)


class _DamageError(ValueError):
    """A record that is none of ours; the text is the reason, one of a few."""


def _fill(example: Example, data: bytes, offset: int) -> None:
    """Key, parts and record of an example from the bytes of its `tf.train.Example`."""
    for name, values in _features(data):
        spans = [value for value in values if isinstance(value, slice)]
        if name == "key" and spans:
            example.key = _text(data[spans[0]]) or ""
            if not example.key.isprintable() or not 0 < len(example.key) <= _MAX_KEY:
                raise _DamageError("unsafe name")
        elif name in PICKLES:
            raise _DamageError("pickle")
        elif spans and (name in _IMAGES or name in ("txt", "json")):
            place = "image" if name in _IMAGES else name
            if place in example.parts or len(spans) > 1:
                raise _DamageError("duplicate member")
            start, stop = spans[0].start, spans[0].stop
            example.parts[place] = Member(name=name, offset=offset + start, size=stop - start, fault=None)
        else:
            plain = [_text(data[value]) if isinstance(value, slice) else value for value in values]
            kept = [value for value in plain if value is not None]
            if kept:
                example.record[name] = kept[0] if len(kept) == 1 else kept


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _features(data: bytes) -> Iterator[tuple[str, list[Any]]]:
    """Name and values of each feature; a value of bytes is a slice of `data`."""
    for _, features in _spans(data, slice(0, len(data)), {1}):
        for _, entry in _spans(data, features, {1}):
            name, values = "", []
            for number, part in _spans(data, entry, {1, 2}):
                if number == 1:
                    name = _text(data[part]) or ""
                else:
                    values = _values(data, part)
            yield name, values


def _values(data: bytes, feature: slice) -> list[Any]:
    values: list[Any] = []
    for kind, part in _spans(data, feature, {1, 2, 3}):
        for _, wire, value in _wire(data, part):
            if kind == 1 and wire == 2:
                values.append(value)
            elif kind == 2 and wire in (2, 5):
                values += [
                    number for (number,) in struct.iter_unpack("<f", data[value][: (value.stop - value.start) & -4])
                ]
            elif kind == 3 and wire in (0, 2):
                values += [_signed(number) for number in (_varints(data, value) if wire == 2 else [value])]
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in values]


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _varints(data: bytes, part: slice) -> Iterator[int]:
    at = part.start
    while at < part.stop:
        value, at = _varint(data, at, part.stop)
        yield value


def _spans(data: bytes, part: slice, numbers: set[int]) -> Iterator[tuple[int, slice]]:
    """The fields of a message that are messages, texts or bytes, of these numbers."""
    return ((number, value) for number, wire, value in _wire(data, part) if wire == 2 and number in numbers)


def _wire(data: bytes, part: slice) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and value of each field: a number for varints (0), else a slice."""
    at, end = part.start, part.stop
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at, end)
            yield number, wire, value
            continue
        if wire == 2:
            size, at = _varint(data, at, end)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _DamageError("record is no tf.train.Example")
        if at + size > end:
            raise _DamageError("record is no tf.train.Example")
        yield number, wire, slice(at, at + size)
        at += size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= end:
            break
        value |= (data[at + place] & 0x7F) << 7 * place
        if data[at + place] < 0x80:
            return value & (2**64 - 1), at + place + 1
    raise _DamageError("record is no tf.train.Example")
