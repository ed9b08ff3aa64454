"""One writer a folder: a lock that is held as long as the writer lives, also across hosts.

The lock is the file `.jdiff.lock` in the folder. Two things guard it:

- `flock`, where the system has it (Windows does not) and the file system takes it. The kernel frees it when its holder
  dies, however it dies; so on one host a killed writer is followed at once.
- A record in the file: host, process, purpose, start, and a counter that a thread raises every 5 seconds. Another host
  may not see the `flock`, as on many shared file systems. It watches the record by its own clock: a change means that
  the holder lives, and 60 seconds without one that it does not. Clocks of two hosts are never compared.

A holder that was suspended for longer than that and has lost its lock finds out at its next `check`.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jdiff.json_files import parse_object

try:
    import fcntl
except ModuleNotFoundError:  # Windows: the record alone
    fcntl = None

NAME = ".jdiff.lock"
_BEAT_SECONDS = 5.0
_STALE_SECONDS = 60.0
_SETTLE_SECONDS = 2.0  # between a record and the certainty that no other host wrote one at the same moment
_RECORD_BYTES = 1024
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LockedError(ValueError):
    """A folder that another process writes into."""


@contextlib.contextmanager
def locked(folder: Path, *, what: str) -> Iterator[Callable[[], None]]:
    """Makes this process the one writer of `folder`, which is created where it is missing; a context. Its value is
    `check()`, which raises LockedError where the lock has been lost since: the folder was removed, or the process was
    suspended and another took over.

    `what` is the purpose in words, as "training". On leaving, the lock's file is removed, and so are folders that were
    created and are empty. Of several processes that are one writer, as those of `jax.distributed`, one alone may lock.

    Raises LockedError, naming the folder and the holder, if another process holds the lock, and OSError, naming the
    folder, if nothing can be written there.
    """
    made = _create(folder)
    try:
        lock = _acquire(folder, what)
        try:
            yield lock.check
        finally:
            lock.release()
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # not empty, or gone
                path.rmdir()


def _create(folder: Path) -> list[Path]:
    """Creates the folder; returns what was missing, innermost first. Raises OSError naming the folder."""
    missing = []
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which does not exist")
        if path.exists():
            if not path.is_dir():
                raise NotADirectoryError(f"{path} is a file, and a folder is needed there; give another --out")
            break
        missing.append(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"folder {folder} cannot be created: {error.strerror or error}") from error
    return missing


def _unwritable(folder: Path, error: OSError) -> OSError:
    return type(error)(f"nothing can be written into {folder}: {error.strerror or error} (its lock, {NAME})")


def _boot() -> str:
    """Names the running kernel, which all its containers share and where `flock` is seen by all."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode()}"


class _Lock:
    """A lock that is held, and the thread that renews its record."""

    def __init__(self, path: Path, file: int, what: str):
        self._path, self._file = path, file
        self._record: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "what": what,
            "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "boot": _boot(),
            "token": uuid.uuid4().hex,
        }
        self._beat, self._lost = 0, ""
        self._stop, self._turn = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._renew, name=f"lock of {path}", daemon=True)

    def write(self) -> None:
        """Writes the record, with the next count, where other hosts see it."""
        text = json.dumps({**self._record, "beat": self._beat}).encode().ljust(_RECORD_BYTES)
        self._beat += 1
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, text)
        os.ftruncate(self._file, len(text))
        os.fsync(self._file)

    def start(self) -> None:
        """From here on the record is renewed."""
        _HELD.add(self._file)
        self._thread.start()

    def mine(self) -> bool:
        """Whether the record is still this process's. Notes why not."""
        record = _parsed(_bytes(self._path))
        if record.get("token") == self._record["token"]:
            return True
        folder = self._path.parent
        self._lost = f"{folder} is gone, or its lock is"
        if record:
            self._lost = f"{folder} was taken over by {_holder(record)} while this process could not renew its lock"
        return False

    def check(self) -> None:
        """Raises LockedError where the lock has been lost."""
        if not self._lost:
            # An OSError may be of a moment; what is written next says more.
            with self._turn, contextlib.suppress(OSError):
                self.mine()
        if self._lost:
            raise LockedError(f"{self._lost}; nothing more is written there")

    def _renew(self) -> None:
        while not self._stop.wait(_BEAT_SECONDS):
            # A file system may be away for a moment; if it stays away, what is written there says so.
            with self._turn, contextlib.suppress(OSError):
                if not self.mine():
                    return
                self.write()

    def release(self) -> None:
        """Frees the lock, and removes its file if that is still this process's."""
        if os.getpid() != self._record["pid"]:
            return
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):
            if self.mine():
                self._path.unlink()
        _HELD.discard(self._file)
        with contextlib.suppress(OSError):
            os.close(self._file)


_HELD: set[int] = set()


def _close_in_child() -> None:
    """A forked worker that outlives a killed writer would hold its `flock`."""
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _acquire(folder: Path, what: str) -> _Lock:
    path = folder / NAME
    while True:
        file, created = _open(path)
        try:
            flocked = _flock(file, path)
            if not _is_at(file, path):
                os.close(file)  # its holder has just removed it
                continue
            record = _parsed(_bytes(path))
            ours = created or (flocked and record.get("boot") == _boot())
            if not ours and not _abandoned(path, record):
                os.close(file)
                continue
            lock = _Lock(path, file, what)
            lock.write()
            if not ours:
                time.sleep(_SETTLE_SECONDS)
                if not lock.mine():
                    raise _refusal(folder, _parsed(_bytes(path)))
            lock.start()
            return lock
        except BaseException as error:
            os.close(file)
            if isinstance(error, OSError):
                if created:
                    path.unlink(missing_ok=True)
                raise _unwritable(folder, error) from error
            raise


def _open(path: Path) -> tuple[int, bool]:
    """The lock's file, and whether this call created it, which on all file systems one alone can have done."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        while True:
            # Whoever created it for nothing may have removed it since.
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
            with contextlib.suppress(FileNotFoundError):
                file = os.open(path, flags)
                break
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is not a regular file, and no lock; remove it")
    return file, False


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _flock(file: int, path: Path) -> bool:
    """Takes the kernel's lock; False where there is none to take. Raises LockedError where another has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _refusal(path.parent, _parsed(_bytes(path))) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _abandoned(path: Path, record: dict[str, Any]) -> bool:
    """Waits until the record has not changed for so long that its writer must be dead; False once the file is gone.
    Raises LockedError as soon as it changes."""
    before, start = _bytes(path), time.monotonic()
    # One without a record was created a moment ago, or its writer died before it had written.
    patience = _STALE_SECONDS if record else _SETTLE_SECONDS
    if record:
        print(
            f"{path.parent} was locked by {_holder(record)}; waiting for {patience:.0f} s to see whether that lives",
            file=sys.stderr,
            flush=True,
        )
    while time.monotonic() - start < patience:
        time.sleep(min(1.0, patience / 10))
        now = _bytes(path)
        if not now and before:
            return False
        if now != before:
            raise _refusal(path.parent, _parsed(now))
    return True


def _bytes(path: Path) -> bytes:
    """What the file holds, opened anew: a shared file system then asks its server. Empty where there is none."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return b""
    try:
        return os.read(file, 4 * _RECORD_BYTES)
    finally:
        os.close(file)


def _parsed(data: bytes) -> dict[str, Any]:
    """The record; empty where there is none."""
    try:
        return parse_object(data, NAME)
    except ValueError:
        return {}


def _holder(record: dict[str, Any]) -> str:
    if not record:
        return "another process, which has just started"
    text = "process {} on {} ({}, since {})".format(*(record.get(key) for key in ("pid", "host", "what", "since")))
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _refusal(folder: Path, record: dict[str, Any]) -> LockedError:
    return LockedError(
        f"{folder} is in use by {_holder(record)}, and has one writer at a time; wait for it, stop it, or give another "
        "--out"
    )
