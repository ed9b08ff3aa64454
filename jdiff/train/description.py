"""`checkpoint.json`: what a checkpoint says of itself, by which it is recognized and found to be whole.

It holds the schema of the state, its step, the experiment's fingerprint, digests of all arrays and of the names and
shapes of the parameters, the size and CRC-32 of each file, and a checksum of all that. Of large files only the size is
there: their arrays have a digest. It is written, and everything is on the disk, before the checkpoint has its name.
"""

import hashlib
import json
import os
import re
import stat
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jdiff.atomic_files import sync, write_atomically
from jdiff.json_files import read_object
from jdiff.typing import Params

NAME = "checkpoint.json"
_LARGE = 2**26
_MESSAGE_BYTES = 1000
_BEFORE = {"schema": int, "experiment": str, "digest": int, "loss": float}
"""What Orbax's own file held before there was this one, when the schema was 3."""


class DamagedError(ValueError):
    """A checkpoint that does not hold what was saved."""


def steps_in(directory: Path) -> list[int]:
    """The steps of the checkpoints in a folder, in order; none where there is no folder. Raises ValueError where it is
    something else."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise ValueError(f"{directory} is a file, and checkpoints need a folder there") from error
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", name))


def write(folder: Path, about: dict[str, Any]) -> None:
    """Describes the checkpoint in `folder`, and hands all of it to the disk."""
    files = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            sync(path)
            files[path.relative_to(folder).as_posix()] = _mark(path)
        sync(Path(root))
    about = about | {"files": dict(sorted(files.items()))}
    write_atomically(folder / NAME, json.dumps(about | {"check": _checksum(about)}, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises DamagedError if that cannot be read, or is of another checkpoint."""
    try:
        about = _before(folder) or read_object(folder / NAME)
    except ValueError as error:
        raise DamagedError(f"checkpoint {folder} is damaged: {error}") from error
    if about.keys() <= _BEFORE.keys():
        return about
    check = about.pop("check", None)
    if check != _checksum(about):
        raise DamagedError(f"checkpoint {folder} is damaged: {NAME} has not the checksum that it had")
    if str(about["step"]) != folder.name:
        raise DamagedError(
            f"checkpoint {folder} is not of step {folder.name}: it is a copy of that of step {about['step']}"
        )
    return about


def check_files(folder: Path, about: dict[str, Any]) -> None:
    """Raises DamagedError, in all processes, naming the first file that is not as it was when it was saved; the first
    process looks."""
    wrong = _wrong(folder, about) if jax.process_index() == 0 else ""
    if jax.process_count() > 1:
        told = np.frombuffer(wrong.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES), np.uint8)
        wrong = bytes(multihost_utils.broadcast_one_to_all(told)).decode(errors="replace").rstrip()
    if wrong:
        raise DamagedError(f"checkpoint {folder} is damaged: {wrong}")


def network(params: Params) -> str:
    """A digest of the names and shapes of parameters."""
    return _checksum(_shapes(params))


def differences(saved: Params, expected: Params) -> list[str]:
    """In which names and shapes parameters differ, the first of them in words."""
    saved, expected = _shapes(saved), _shapes(expected)
    names = sorted(saved.keys() | expected.keys())
    wrong = [
        f"{name} is {saved.get(name, 'missing')} there and {expected.get(name, 'missing')} here"
        for name in names
        if saved.get(name) != expected.get(name)
    ]
    return wrong if len(wrong) <= 3 else [*wrong[:3], f"and {len(wrong) - 3} more"]


def _before(folder: Path) -> dict[str, Any] | None:
    """The description of a checkpoint that was made before there was this file."""
    if os.path.exists(folder / NAME):
        return None
    try:
        about = read_object(folder / "_CHECKPOINT_METADATA").get("custom_metadata")
    except ValueError:
        return None
    if not isinstance(about, dict) or about.keys() | {"loss"} != _BEFORE.keys():
        return None
    known = all(type(value) is _BEFORE[name] for name, value in about.items()) and about["schema"] == 3
    return about if known else None


def _wrong(folder: Path, about: dict[str, Any]) -> str:
    for name, mark in about.get("files", {}).items():
        path = folder / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return f"{path} is not a regular file"
            now = _mark(path)
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        if now[0] != mark[0]:
            return f"{path} has {now[0]} bytes, and had {mark[0]}"
        if now != mark:
            return f"{path} has not the content that it had"
    return ""


def _mark(path: Path) -> list[int]:
    """Size and CRC-32, of a large file the size alone."""
    size = path.stat().st_size
    return [size, zlib.crc32(path.read_bytes()) if size <= _LARGE else 0]


def _checksum(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    is_leaf = lambda node: hasattr(node, "shape")
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)[0]
    return {"/".join(str(entry.key) for entry in path): tuple(leaf.shape) for path, leaf in leaves}
