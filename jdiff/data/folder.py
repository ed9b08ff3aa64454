"""A folder of images as a data set.

Subfolders are classes, named after them, as in Hugging Face's ImageFolder; images directly in the folder have no
class. Folders may be nested deeper: the first level is the class.
"""

import collections
import hashlib
from pathlib import Path

from jdiff.data.drawings import lowest_tenth
from jdiff.data.images import FORMATS, check_header, read_square
from jdiff.data.sources import Row, Split

_HEAD_BYTES = 4096


class FolderSource:
    """The images in the folder `path` that are on the side `split`, as squares of `size` pixels.

    An image is held out when the SHA-256 of its name relative to the folder lies in the lowest tenth. The header of
    every image, on both sides, is checked when opened. `skipped` counts files that are left out, by reason.

    The fingerprint covers names, lengths and first 4096 bytes of the files, and `size`; a change further inside a file
    that keeps its length is not seen.

    Raises ValueError, naming the path, where the folder does not exist, has no image or none on this side of the split,
    has images both inside and beside subfolders, or holds an image that cannot be read.
    """

    def __init__(self, path: str | Path, *, split: Split, size: int):
        self._root = Path(path)
        if not self._root.is_dir():
            raise ValueError(f"folder {self._root} does not exist or is not a folder")
        found = sorted(p.relative_to(self._root).as_posix() for p in self._root.rglob("*") if p.is_file())
        names = [name for name in found if Path(name).suffix.lower() in FORMATS]
        self.skipped = collections.Counter({"not the suffix of an image": len(found) - len(names)})
        if not names:
            raise ValueError(f"folder {self._root} has no images ({', '.join(FORMATS)}) among its {len(found)} files")
        for name in names:
            check_header(self._root / name)

        classes = sorted({name.split("/")[0] for name in names if "/" in name})
        beside = [name for name in names if "/" not in name]
        if classes and beside:
            raise ValueError(
                f"folder {self._root} has images in subfolders, which are classes ({classes[0]}, ...), and beside them "
                f"({beside[0]}, ...): move these into a class"
            )
        self.class_names = tuple(classes)
        self._names = [name for name in names if lowest_tenth(name) == (split == "held_out")]
        if not self._names:
            raise ValueError(f"folder {self._root} has {len(names)} images and none of them is in the {split} split")
        self._labels = [classes.index(name.split("/")[0]) if classes else 0 for name in self._names]
        self._size = size
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Row:
        label = self._labels[row]
        caption = self.class_names[label] if self.class_names else ""
        return {"image": read_square(self._root / self._names[row], self._size), "label": label, "caption": caption}

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self._size, self.class_names)).encode())
        for name in self._names:
            path = self._root / name
            with path.open("rb") as file:
                digest.update(repr((name, path.stat().st_size, file.read(_HEAD_BYTES))).encode())
        return digest.hexdigest()
