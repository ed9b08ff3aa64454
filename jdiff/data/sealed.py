"""Arrow and Parquet files that carry their own SHA-256.

Both formats end with a footer, its length and a mark, and are read from there; bytes before the footer that nothing
points to are ignored. The digest stands in them, of all other bytes: any reader of the format reads a sealed file, and
a changed one is found before a library that trusts its offsets maps it.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

_MARK = b"jdiff sha256\0\0\0\0"
_BLOCK = len(_MARK) + 32
_ENDS = (b"ARROW1", b"PAR1")
_CHUNK = 2**20


def seal(path: Path) -> None:
    """Puts its digest into an Arrow IPC or Parquet file that has just been written."""
    with open(path, "rb+") as file:
        footer = _footer(file)
        assert footer is not None, path
        digest = _digest(file, footer, footer)
        file.seek(footer)
        end = file.read()
        file.seek(footer)
        file.write(_MARK + digest + end)


def check_seal(path: Path | str) -> str | None:
    """What is wrong with a file that should be sealed, in words; None for one that is as it was written.

    Raises OSError where it cannot be read.
    """
    with open(path, "rb") as file:
        footer = _footer(file)
        block = max((footer or 0) - _BLOCK, 0)
        file.seek(block)
        mark = file.read(_BLOCK)
        if footer is None or not mark.startswith(_MARK):
            return "has no digest: it is damaged, or of a version that wrote none"
        if _digest(file, block, footer) != mark[len(_MARK) :]:
            return "is damaged: its SHA-256 is not the one that was written with it"
    return None


def _footer(file: BinaryIO) -> int | None:
    """Where the footer begins; None for a file without one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 10, 0))
    end = file.read()
    for mark in _ENDS:
        if end.endswith(mark) and len(end) >= len(mark) + 4:
            length = int.from_bytes(end[-len(mark) - 4 : -len(mark)], "little")
            start = size - len(mark) - 4 - length
            return start if start >= 0 else None
    return None


def _digest(file: BinaryIO, stop: int, again: int) -> bytes:
    """SHA-256 of what lies before `stop`, and from `again` on."""
    digest = hashlib.sha256()
    file.seek(0)
    left = stop
    while left and (data := file.read(min(left, _CHUNK))):
        digest.update(data)
        left -= len(data)
    file.seek(again)
    while data := file.read(_CHUNK):
        digest.update(data)
    return digest.digest()
