"""A folder of images as a data set.

As in Hugging Face's ImageFolder: subfolders are classes, named after them, and images directly in the folder have no
class; folders may be nested deeper, the first level is the class. Where the first level is `train` and other splits,
classes lie below it. Where `metadata.csv`, `.jsonl` or `.parquet` gives captions, there are no classes. Files are those
of `walk.files`; links to folders are followed.
"""

import hashlib
import os
import posixpath
from collections.abc import Callable
from pathlib import Path

from jdiff.data.drawings import lowest_tenth
from jdiff.data.images import FORMATS, check_header, read_square
from jdiff.data.metadata import captions_in, is_table, table_key
from jdiff.data.sources import Row, Split
from jdiff.data.walk import files, name_of, path_of

_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
_HEAD_BYTES = 4096


class FolderSource:
    """The images in the folder `path` that are on the side `split`, as squares of `size` pixels.

    Held out is the folder `test`, else `validation`, of a folder with splits; otherwise an image is when the SHA-256 of
    its name relative to the folder lies in the lowest tenth. The header of every image, on both sides, is checked when
    opened. `skipped` counts files that are left out, by reason.

    The fingerprint covers names, lengths and first 4096 bytes of the files, and `size`; a change further inside a file
    that keeps its length is not seen.

    Raises ValueError, naming the path, where the folder does not exist, has no image or none on this side of the split,
    has images both inside and beside subfolders, or holds an image that cannot be read; where a table of captions
    cannot be read, or lacks an image.
    """

    def __init__(self, path: str | Path, *, split: Split, size: int):
        self._root = Path(path)
        if not self._root.is_dir():
            raise ValueError(f"folder {self._root} does not exist or is not a folder")
        found, self.skipped = files(self._root)
        names = [name for name in found if posixpath.splitext(name)[1].lower() in FORMATS]
        tables = sum(map(is_table, found))
        self.skipped["not the suffix of an image"] = len(found) - len(names) - tables
        if not names:
            left_out = "".join(f"; left out: {count} {reason}" for reason, count in self.skipped.items() if count)
            raise ValueError(
                f"folder {self._root} has no images ({', '.join(FORMATS)}) among its {len(found)} files{left_out}"
            )
        for name in names:
            check_header(self._path(name))
        captions = captions_in(self._root, found)
        if captions is not None:
            if lacking := [name for name in names if table_key(name) not in captions]:
                raise ValueError(
                    f"folder {self._root} has a table of captions that lacks {len(lacking)} images: {lacking[0]}"
                )
            self.skipped["caption of an image that is not there"] = len(captions) - len(names)
        self.skipped = +self.skipped
        side, inside = _sides(names, split)
        self.class_names = () if captions is not None else self._classes({inside(name) for name in names})
        self._names = side
        if not self._names:
            raise ValueError(f"folder {self._root} has {len(names)} images and none of them is in the {split} split")
        classes = self.class_names
        self._labels = [classes.index(inside(name).split("/")[0]) if classes else 0 for name in self._names]
        self._captions = [
            captions[table_key(name)] if captions is not None else classes[label] if classes else ""
            for name, label in zip(self._names, self._labels, strict=True)
        ]
        self._size = size
        self.fingerprint = self._fingerprint()

    def _classes(self, names: set[str]) -> tuple[str, ...]:
        """The subfolders of `names`, which are those of images. Raises ValueError where some lie beside them."""
        classes = sorted({name.split("/")[0] for name in names if "/" in name})
        beside = sorted(name for name in names if "/" not in name)
        if classes and beside:
            raise ValueError(
                f"folder {self._root} has images in subfolders, which are classes ({classes[0]}, ...), and beside them "
                f"({beside[0]}, ...): move these into a class"
            )
        return tuple(classes)

    def _path(self, name: str) -> str:
        return posixpath.join(name_of(self._root), name)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Row:
        image = read_square(self._path(self._names[row]), self._size)
        return {"image": image, "label": self._labels[row], "caption": self._captions[row]}

    def _fingerprint(self) -> str:
        told = () if self.class_names or not any(self._captions) else (self._captions,)
        digest = hashlib.sha256(repr((self._size, self.class_names, *told)).encode())
        for name in self._names:
            with open(path_of(self._path(name)), "rb") as file:
                digest.update(repr((name, os.fstat(file.fileno()).st_size, file.read(_HEAD_BYTES))).encode())
        return digest.hexdigest()


def _sides(names: list[str], split: Split) -> tuple[list[str], Callable[[str], str]]:
    """The names on one side, and what takes the folder of a split off a name, where there are such."""
    first = {name.split("/")[0] if "/" in name else "" for name in names}
    if "train" not in first or not first <= _SPLITS:
        return [name for name in names if lowest_tenth(name) == (split == "held_out")], lambda name: name
    inside = lambda name: name.split("/", 1)[1]
    own = next((folder for folder in ("test", "validation", "valid", "val", "dev", "eval") if folder in first), None)
    if own is not None:
        part = own if split == "held_out" else "train"
        return [name for name in names if name.startswith(f"{part}/")], inside
    return [name for name in names if lowest_tenth(name) == (split == "held_out")], inside
