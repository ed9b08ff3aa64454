"""A folder of pictures: each is on the disk as soon as it is finished, and no name is used twice.

NNNNN.png are pictures by their numbers, and grid.png shows the first of them. Each says in its PNG, under "jdiff", all
that it depends on. A command that finds its own pictures goes on where it was left, and draws what is not there or not
whole. Where a numbered picture is another one, of another seed, prompt, setting or other parameters, or says nothing,
the command is refused by the name of what differs; a folder that was not given by --out gets a longer name instead.
"""

import hashlib
import json
import math
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, PngImagePlugin

from jdiff import pictures
from jdiff.json_files import parse_object

_GRID_PIXELS = 2**26
About = Callable[[int], dict[str, Any] | None]
"""All that the picture of a number depends on; None where there is none of that number."""


class Drawing:
    """Pictures in a folder that this process alone writes into."""

    def __init__(self, folder: Path, about: About):
        """Raises ValueError where a numbered picture in the folder is another one, naming what differs."""
        self.folder, self._about = folder, about
        if wrong := _conflict(folder, about):
            raise ValueError(f"{wrong}; give another --out")
        self._start, self._drawn = time.monotonic(), 0

    def path(self, number: int) -> Path:
        """Fields of one picture."""
        return self.folder / f"{number:05d}.png"

    def missing(self, count: int) -> list[int]:
        """Which of the first `count` pictures are not there, or not whole."""
        return [number for number in range(count) if not _read(self.path(number))]

    def save(self, numbers: Sequence[int], images: np.ndarray) -> None:
        """Writes pictures [n, H, W, 3] in [-1, 1]."""
        for number, image in zip(numbers, images, strict=True):
            pictures.save(pictures.to_uint8(image), self.path(number), note=json.dumps(self._about(number)))
            self._drawn += 1

    def tell(self, left: int) -> None:
        """Progress, on standard error where somebody watches it."""
        if sys.stderr.isatty() and self._drawn and left:
            seconds = (time.monotonic() - self._start) / self._drawn * left
            print(f"{self._drawn} of {self._drawn + left} pictures, {seconds:.0f} s left", file=sys.stderr, flush=True)

    def interrupted(self, count: int) -> KeyboardInterrupt:
        """Says how far it has got, and how to go on."""
        done = count - len(self.missing(count))
        return KeyboardInterrupt(
            f"interrupted: {done} of {count} pictures are in {self.folder}; the same command draws the others"
        )

    def grid(self, count: int, columns: int, *, enlarge: bool = False) -> Path:
        """Writes the grid of the first `count` pictures, or of as many as a picture of 64 megapixels takes."""
        with Image.open(self.path(0)) as first:
            width, height = first.size
        rows = min(math.ceil(count / columns), max(1, _GRID_PIXELS // (columns * width * height)))
        shown = [np.asarray(Image.open(self.path(number))) for number in range(min(count, rows * columns))]
        scale = pictures.enlargement(height) if enlarge else 1
        pictures.save(pictures.tile(np.stack(shown), columns), self.folder / "grid.png", enlarge=scale)
        return self.folder / "grid.png"


def free(folder: Path, about: About) -> Path:
    """The folder for pictures that were given none: this one, or one with a longer name where it has others."""
    if not _conflict(folder, about):
        return folder
    return folder.with_name(f"{folder.name}_{hashlib.sha256(json.dumps(about(0)).encode()).hexdigest()[:8]}")


def chunks(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """The numbers, `size` at a time."""
    for start in range(0, len(numbers), size):
        yield list(numbers[start : start + size])


def mark(params: Any) -> str:
    """A digest of parameters: their names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.ascontiguousarray(leaf)
        crc = zlib.crc32(values.reshape(-1).view(np.uint8).data)
        digest.update(repr((jax.tree_util.keystr(path), values.shape, str(values.dtype), crc)).encode())
    return digest.hexdigest()[:16]


def _conflict(folder: Path, about: About) -> str:
    """Why the folder cannot take these pictures, in words; empty where it can."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        if not re.fullmatch(r"\d{5,}\.png", name) or (there := _read(folder / name)) is None:
            continue
        wanted = about(int(name[:-4]))
        if wanted is None:
            return f"{folder} holds {name}, which is not of these pictures"
        if not there:
            return f"{folder} holds {name}, which does not say how it was drawn"
        wanted = json.loads(json.dumps(wanted))
        wrong = [
            f"{field} is {_told(there, field)} there and {_told(wanted, field)} here"
            for field in sorted(there.keys() | wanted.keys())
            if _told(there, field) != _told(wanted, field)
        ]
        if wrong:
            return f"{folder} holds {name} of another drawing: {'; '.join(wrong[:5])}"
    return ""


def _told(values: dict[str, Any], name: str) -> str:
    text = json.dumps(values[name]) if name in values else "missing"
    return text if len(text) <= 100 else f"{text[:100]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _read(path: Path) -> dict[str, Any] | None:
    """What a picture says that it is, empty where it says nothing; None where there is none that is whole: a power loss
    leaves empty files."""
    try:
        if not path.is_file():
            return None
        with Image.open(path) as image:
            image.load()
            note = image.info.get(pictures.NOTE) if isinstance(image, PngImagePlugin.PngImageFile) else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    try:
        return {} if note is None else parse_object(str(note), str(path))
    except ValueError:
        return {}
