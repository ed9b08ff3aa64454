"""Parts of a shard by offset: local files by `pread`, which threads and processes may share, the rest by fsspec.

Neither is waited for without an end: a store, a stuck mount or a pipe raises TimeoutError or another OSError.
"""

import io
import os
import stat
from typing import Any

from jdiff.data.patience import within

REMOTE = "://"


class Reader:
    """A shard that is open for reading: `read(offset, length)`, `length` and a `stamp` that changes with the content.

    Local files are stamped with size and time, others with size and what their store gives: an ETag or a time.
    Raises OSError where the shard cannot be opened or read; TimeoutError is one.
    """

    def __init__(self, shard: str):
        self.bytes_read = 0
        self._file = self._store = None
        if REMOTE not in shard:
            # A pipe would wait for a writer without O_NONBLOCK, which changes nothing for a file.
            self._file = within(lambda: os.open(shard, os.O_RDONLY | os.O_NONBLOCK), shard)
            status = os.fstat(self._file)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{shard} is no regular file")
            self.length = status.st_size
        else:
            import fsspec  # of the extra `data`

            store, self._path = fsspec.core.url_to_fs(shard)
            self._store = store
            self.length = int(within(lambda: store.info(self._path), shard)["size"])
        self._shard = shard

    @property
    def stamp(self) -> str:
        """As the shard is now, not as it was when opened."""
        return stamp(self._shard)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer where the shard ends."""
        if offset >= self.length or length <= 0:
            return b""
        length = min(length, self.length - offset)
        if self._store is not None:
            store = self._store
            data = within(lambda: store.cat_file(self._path, start=offset, end=offset + length), self._shard)
        else:
            data = self._local(offset, length)
        self.bytes_read += len(data)
        return data

    def _local(self, offset: int, length: int) -> bytes:
        """What is in memory already is read at once: it cannot hang, and is ten times as fast."""
        file = self._file
        assert file is not None
        if hasattr(os, "RWF_NOWAIT"):
            buffer = bytearray(length)
            try:
                if os.preadv(file, [buffer], offset, os.RWF_NOWAIT) == length:
                    return bytes(buffer)
            except OSError:
                pass  # not in memory, or a file system that does not say
        return within(lambda: os.pread(file, length, offset), self._shard)

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
    return shard if REMOTE in shard else os.path.abspath(shard)


def stamp(shard: str) -> str:
    """Changes with the content of a shard. Raises OSError where there is none."""
    if REMOTE not in shard:
        status = within(lambda: os.stat(shard), shard)
        return f"{status.st_size}:{status.st_mtime_ns}"
    import fsspec  # of the extra `data`

    store, path = fsspec.core.url_to_fs(shard)
    info = within(lambda: store.info(path), shard)
    mark = next((info[name] for name in ("ETag", "etag", "mtime", "LastModified", "updated") if name in info), "")
    return f"{info['size']}:{mark}"
