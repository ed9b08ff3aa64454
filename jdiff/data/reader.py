"""Parts of a shard by offset: local files by `pread`, which threads and processes may share, the rest by fsspec.

Neither is waited for without an end: a store, a stuck mount or a pipe raises TimeoutError or another OSError.
"""

import functools
import io
import os
import stat
from typing import Any

from jdiff.data.patience import within
from jdiff.data.stores import is_url, missing, store_of
from jdiff.data.walk import name_of, path_of


class Reader:
    """A shard that is open for reading: `read(offset, length)`, `length` and a `stamp` that changes with the content.

    Local files are stamped with size and time, others with size and what their store gives: an ETag or a time.
    Raises OSError where the shard cannot be opened or read; TimeoutError is one. A store is asked when read from first.
    """

    def __init__(self, shard: str):
        self.bytes_read = 0
        self._shard = shard
        self._file = None
        if not is_url(shard):
            # A pipe would wait for a writer without O_NONBLOCK, which changes nothing for a file.
            self._file = within(lambda: os.open(path_of(shard), os.O_RDONLY | os.O_NONBLOCK), shard)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise OSError(f"{shard} is no regular file")

    @functools.cached_property
    def length(self) -> int:
        """In bytes."""
        if self._file is not None:
            return os.fstat(self._file).st_size
        size = _asked(self._shard, "info")["size"]
        if size is None:
            raise OSError(f"{self._shard} has a length that its store does not tell")
        return size

    @property
    def stamp(self) -> str:
        """As the shard is now, not as it was when opened."""
        return stamp(self._shard)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer where the shard ends."""
        if length <= 0:
            return b""
        data = self.ready(offset, length)
        if data is None:
            file = self._file
            if file is None:
                data = _asked(self._shard, "cat_file", start=offset, end=offset + length)
            else:
                length = max(min(length, self.length - offset), 0)
                data = within(lambda: os.pread(file, length, offset), self._shard)
            self.bytes_read += len(data)
        return data

    def ready(self, offset: int, length: int) -> bytes | None:
        """As `read` where that need not wait, since the bytes are in memory; else None. Ten times as fast."""
        if self._file is None or not hasattr(os, "RWF_NOWAIT") or offset + length > self.length:
            return None
        buffer = bytearray(length)
        try:
            if os.preadv(self._file, [buffer], offset, os.RWF_NOWAIT) == length:
                self.bytes_read += length
                return bytes(buffer)
        except OSError:
            pass  # not in memory, or a file system that does not say
        return None

    def close(self) -> None:
        """Gives the file back; the reader is not used again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Ahead:
    """`read` with one block kept, so that headers that lie close together are one access to a remote store."""

    def __init__(self, reader: Any, block: int = 2**16):
        self._reader, self._block, self._start, self._kept = reader, block, 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """As `Reader.read`."""
        at = offset - self._start
        if at < 0 or at + length > len(self._kept):
            self._start, at = offset, 0
            self._kept = self._reader.read(offset, max(length, self._block))
        return self._kept[at : at + length]


class Window(io.RawIOBase):
    """A stretch of a shard as a file, read only where it is asked for."""

    def __init__(self, read: Any, offset: int, size: int):
        self._read, self._offset, self._size, self._at = read, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._read(self._offset + self._at, min(len(buffer), max(self._size - self._at, 0)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def absolute(shard: str) -> str:
    """The name under which a shard is known: a URL, or a local path from the root on."""
    return shard if is_url(shard) else name_of(os.path.abspath(shard))


def stamp(shard: str) -> str:
    """Changes with the content of a shard. Raises OSError where there is none."""
    if not is_url(shard):
        status = within(lambda: os.stat(path_of(shard)), shard)
        return f"{status.st_size}:{status.st_mtime_ns}"
    info = _asked(shard, "info")
    mark = next((info[name] for name in ("ETag", "etag", "mtime", "LastModified", "updated") if name in info), "")
    return f"{info['size']}:{mark}"


def is_same(recorded: str, now: str) -> bool:
    """Whether a shard has the stamp that an index recorded, which may go on with that of the table beside the shard."""
    return f"{recorded}+".startswith(f"{now}+")


def _asked(shard: str, method: str, **options: int) -> Any:
    """What the store of a shard answers. Stores have errors of their own: all of them become OSError.

    Raises ValueError for a store that is not read, or whose package is missing.
    """
    store, path = store_of(shard)
    try:
        return within(lambda: getattr(store, method)(path, **options), shard)
    except OSError:
        raise
    except ImportError as error:
        raise missing(shard) from error
    except Exception as error:
        raise OSError(f"{shard} cannot be read: {type(error).__name__}: {error}") from error
