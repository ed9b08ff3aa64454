"""Members of a tar file by offset, from headers alone: nothing is extracted, and no content is read.

A tar file is a row of 512-byte headers, each followed by its content padded to 512 bytes (POSIX.1-1988 ustar; PAX
records of POSIX.1-2001; GNU's long names and sparse files, as the manual of GNU tar describes them). A shard comes from
strangers, so every number in it is checked before it is used, and what a reader of images has no use for (links,
devices, sparse files, names that lead out of a folder) is passed on with the reason why it is not read.

The end of the data is proved. Zero blocks end a file where they fill its last record, of 20 blocks or a power of two
(`tar -b`); a file that was laid out before it was downloaded has more of them. Members that follow, as in files that
were put together, are read.
"""

import dataclasses
from collections.abc import Callable, Iterator

Read = Callable[[int, int], bytes]
"""(offset, length) -> that part of a shard; shorter where the shard ends."""

BLOCK = 512
_RECORD = 20 * BLOCK
_RECORDS = [2**bits for bits in range(14, 21)]
_ZEROS = 2**16
_HOLE = "zeros in place of members"
_AFTER_END = "data after the end of the tar file"
_MAX_EXTENSION = 2**20
_MAX_NAME = 1024
_COMPRESSED = {b"\x1f\x8b": "gzip'd shard", b"BZh": "compressed shard", b"\xfd7zXZ": "compressed shard"} | {
    b"\x28\xb5\x2f\xfd": "compressed shard"
}
_FILES, _LINKS, _SPECIAL, _FOLDER = b"\0" + b"07", b"12", b"346", b"5"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One member: its name, where its content lies, and why it must not be read, or None."""

    name: str
    offset: int
    size: int
    fault: str | None


class ShardError(ValueError):
    """The shard cannot be read from here on; the text is the reason, one of a few. `complete` says that the members
    before are whole."""

    def __init__(self, reason: str, *, complete: bool = False):
        super().__init__(reason)
        self.complete = complete


def members(read: Read, length: int) -> Iterator[Member]:
    """The members of a tar file of `length` bytes, folders left out. Raises `ShardError` where it cannot go on."""
    if not length:
        raise ShardError("empty shard")
    position, extension, zeros = 0, {}, False
    defaults: dict[str, bytes] = {}
    while True:
        header = read(position, BLOCK)
        if len(header) < BLOCK:
            _refuse_compressed(header, position)
            if zeros:
                raise ShardError(_AFTER_END, complete=True)
            raise ShardError("truncated shard" if position else "not a tar file")
        if not header.strip(b"\0"):
            if extension:
                raise ShardError("damaged tar header")
            end = position
            position, defaults, zeros = _after_zeros(read, position, length), {}, True
            lost = not _is_padding(position - end, position)
            if position == length:
                if lost:
                    raise ShardError(_HOLE)
                return
            if lost:
                yield Member(name="", offset=end, size=0, fault=_HOLE)
            continue
        try:
            kind, size = _checked(header, position)
        except ShardError as damage:
            raise ShardError(_AFTER_END, complete=True) if zeros else damage from None
        zeros = False
        start = position + BLOCK
        if kind in b"xgLK":
            position = start + _padded(size)
            content = _extension(read, start, size, length)
            if kind == b"g":
                defaults |= _records(content)
            elif kind == b"x":
                extension |= _records(content)
            elif kind == b"L":
                extension["path"] = content.rstrip(b"\0")
            continue
        records, extension = defaults | extension, {}
        if "size" in records:
            size = _decimal(records["size"])
        if kind == b"S":
            # Old GNU sparse files list their holes in further blocks, which the size does not count.
            more = header[482:483]
            while more != b"\0":
                more = read(start, BLOCK)[504:505] or b"\0"
                start += BLOCK
        raw = records.get("path", _ustar_name(header))
        if kind in (b"\0", b"0") and raw.endswith(b"/"):
            kind = _FOLDER
        holds = kind not in _LINKS + _SPECIAL + _FOLDER
        position = start + _padded(size) if holds else start
        if holds and start + size > length:
            yield Member(name=_shown(raw), offset=start, size=size, fault="truncated shard")
            return
        if kind != _FOLDER:
            fault = _fault(kind, raw, records)
            yield Member(name=_shown(raw), offset=start, size=size if holds else 0, fault=fault)


def _after_zeros(read: Read, position: int, length: int) -> int:
    """The first block from `position` on that is not of zeros, or the end."""
    while position < length:
        data = read(position, min(_ZEROS, length - position))
        if not data:
            return length
        kept = data.lstrip(b"\0")
        if kept:
            return position + (len(data) - len(kept)) // BLOCK * BLOCK
        position += len(data)
    return length


def _is_padding(zeros: int, position: int) -> bool:
    """Whether so many `zeros` up to `position` may be of a writer: two blocks, and up to a record."""
    records = [_RECORD, *(record for record in _RECORDS if position % record == 0)]
    return any(zeros < 2 * BLOCK + record for record in records)


def _checked(header: bytes, position: int) -> tuple[bytes, int]:
    """Kind and size of a header whose checksum is right."""
    stored = header[148:156].strip(b" \0")
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    try:
        right = int(stored, 8) == total
    except ValueError:
        right = False
    if not right:
        _refuse_compressed(header, position)
        raise ShardError("damaged tar header" if position else "not a tar file")
    field = header[124:136]
    # GNU writes sizes from 8 GiB on as binary numbers; a first byte of 0xff would be a negative one.
    if field[0] == 0x80:
        return header[156:157], int.from_bytes(field[1:])
    try:
        size = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        size = -1
    if size < 0:
        raise ShardError("damaged tar header")
    return header[156:157], size


def _refuse_compressed(header: bytes, position: int) -> None:
    for magic, reason in _COMPRESSED.items():
        if position == 0 and header.startswith(magic):
            raise ShardError(reason)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _extension(read: Read, start: int, size: int, length: int) -> bytes:
    if start + size > length:
        raise ShardError("truncated shard")
    if size > _MAX_EXTENSION:
        raise ShardError("damaged tar header")
    return read(start, size)


def _records(content: bytes) -> dict[str, bytes]:
    """PAX records "LENGTH KEY=VALUE\\n", the length counting itself."""
    records, position = {}, 0
    while position < len(content):
        digits, space, _ = content[position : position + 24].partition(b" ")
        size = _decimal(digits) if space else 0
        record = content[position + len(digits) + 1 : position + size]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or not record.endswith(b"\n") or position + size > len(content):
            raise ShardError("damaged tar header")
        records[key.decode("utf-8", "backslashreplace")] = value
        position += size
    return records


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise ShardError("damaged tar header")
    return int(digits)


def _ustar_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _shown(raw: bytes) -> str:
    return raw[:_MAX_NAME].decode("utf-8", "backslashreplace").removeprefix("./")


def _fault(kind: bytes, raw: bytes, records: dict[str, bytes]) -> str | None:
    if kind in _LINKS:
        return "link"
    if kind == b"S" or any(key.startswith("GNU.sparse.") for key in records):
        return "sparse member"
    if kind not in _FILES:
        return "special member"
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return "name is not UTF-8"
    if not name or len(raw) > _MAX_NAME or name.startswith("/") or not name.isprintable() or ".." in name.split("/"):
        return "unsafe name"
    return None
