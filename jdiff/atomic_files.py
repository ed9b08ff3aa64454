"""Files that appear whole or not at all, also after a power loss.

A file is written beside its place, handed to the disk (`fsync`), and renamed. Whatever goes wrong in between, the place
holds what it held, and nothing unfinished is left unless the process is killed; `remove_unfinished` removes that.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields the path of an unfinished file in the folder of `path`, which is created where it is missing. On leaving,
    the file takes the place of `path`; after an error it is removed. Raises OSError naming `path`."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            sync(unfinished)
            os.replace(unfinished, path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
    except OSError as error:
        raise named(error, path) from error


def check_writable(path: Path) -> None:
    """Raises OSError, naming the path, where `replaced` could not write: to be asked before the work begins. Leaves
    nothing but the folder."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file is to be written there")
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which does not exist")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.tmp")
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        raise named(error, path) from error


def named(error: OSError, path: Path) -> OSError:
    """The error with the file in its message: what the system says of a full disk names none."""
    return type(error)(f"{path} cannot be written: {error.strerror or error}")


def write_atomically(path: Path, text: str) -> None:
    """The file holds all of `text`, or is as it was. Raises OSError naming it."""
    with replaced(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed writer has left in a folder; for its one writer."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Hands a file, or the names in a folder, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
