"""JSON objects from files that anyone may have written.

A file is read only if it is a regular file of bounded size, holds UTF-8 (with or without a byte order mark) and is one
JSON object; a pipe or a device is never waited for. NaN and Infinity are read as Python writes them: whether a field
may have them is for its reader to say.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 2**26
"""Larger files are refused. The largest known is the index of a model's shards, a few MB."""


def read_object(path: Path | str, *, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes. Raises ValueError, naming the file, for anything else."""
    return parse_object(_read(path, most), str(path))


def parse_object(data: bytes | str, name: str) -> dict[str, Any]:
    """The JSON object in `data`, which is called `name` in errors. Raises ValueError for anything else."""
    try:
        value = json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from error
    except json.JSONDecodeError as error:
        what = "is empty" if not error.doc.strip() else f"is not JSON: {error}"
        raise ValueError(f"{name} {what}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is not readable: its values are nested too deeply") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise ValueError(f"{name} is not readable: {error}") from error
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{name} must hold a JSON object, got {kind}")
    return value


def _read(path: Path | str, most: int) -> bytes:
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for someone to write into it.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is not a regular file")
            data = file.read(most + 1)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is not a regular file") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise ValueError(f"{path} has more than {most} bytes; a JSON object here has fewer")
    return data
