"""Files below a folder that count as data: the one walker for image folders, class folders and folders of shards.

Hidden files and files of operating systems (`.ipynb_checkpoints`, `__MACOSX`, `._x.png`, `Thumbs.db`) are left out and
counted. Links are followed. A real folder is visited once, under its own name if that lies below the root, so loops
end. Names are ordered by code point, whatever the locale.

A file name is bytes. `name_of` writes those that are not UTF-8 as `\\xHH`, so that a name fits a table, a terminal and
JSON; `path_of` gives the bytes back.
"""

import collections
import os
import re
from pathlib import Path
from typing import NamedTuple

HIDDEN = "hidden or of the system"
_SYSTEM = {
    *("__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin"),
    *("desktop.ini", "thumbs.db", "ehthumbs.db", "icon\r", "lost+found", "system volume information"),
}
_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


class Files(NamedTuple):
    """Regular files below a folder, relative to it, and counts of the entries left out, by reason."""

    names: list[str]
    left_out: "collections.Counter[str]"


def name_of(path: str | bytes | os.PathLike) -> str:
    """A path as text: UTF-8, with other bytes as `\\xHH`."""
    text = os.fsencode(path).decode("utf-8", "surrogateescape")
    return _ESCAPE.sub(r"\\x5c", text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def path_of(name: str) -> str:
    """The path that `name_of` wrote as `name`, as this locale has it."""
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), name.encode()))


def files(root: str | Path, *, deep: bool = True) -> Files:
    """The files below `root`; directly in it unless `deep`. Raises ValueError where a folder cannot be read."""
    left_out, names, links = collections.Counter(), [], []
    visited: set[bytes] = set()
    start = os.fsencode(root)

    def visit(top: bytes) -> None:
        pending = [top]
        while pending:
            folder = pending.pop()
            real = os.path.realpath(os.path.join(start, folder))
            if real in visited:
                left_out["link to a folder that is read already"] += 1
                continue
            visited.add(real)
            for entry, kind in _entries(start, folder, left_out):
                if kind == "file":
                    names.append(name_of(entry))
                elif deep:
                    (links if kind == "link" else pending).append(entry)

    visit(b"")
    # Links after folders, the least deep first: a folder below the root keeps its own name.
    while links:
        links.sort(key=lambda link: (link.count(b"/"), link), reverse=True)
        visit(links.pop())
    return Files(sorted(names), left_out)


def _entries(root: bytes, folder: bytes, left_out: "collections.Counter[str]") -> list[tuple[bytes, str]]:
    """Entries of one folder that may be data, relative to the root, each a "file", a "folder" or a "link" to one."""
    found = []
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith(b".") or entry.name.decode(errors="replace").lower() in _SYSTEM:
                    left_out[HIDDEN] += 1
                    continue
                kind = _kind(entry)
                if kind in ("file", "folder", "link"):
                    found.append((os.path.join(folder, entry.name), kind))
                else:
                    left_out[kind] += 1
    except OSError as error:
        raise ValueError(
            f"folder {name_of(os.path.join(root, folder).rstrip(b'/'))} cannot be read: {error.strerror}"
        ) from error
    return found


def _kind(entry: "os.DirEntry[bytes]") -> str:
    # Only links cost a system call each: there may be millions of files.
    try:
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
        if entry.is_file():
            return "file"
    except OSError:
        return "broken link"
    return "broken link" if entry.is_symlink() else "no regular file"
