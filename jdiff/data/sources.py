"""Where examples come from: anything with a length and random access to rows of image, label and caption.

A source is opened for one side of the train / held-out split, and checks its data when opened. Which order rows are
read in, and how they become batches, is decided elsewhere (`jdiff.data.pipeline`).
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, NotRequired, Protocol, TypedDict

import numpy as np

Split = Literal["train", "held_out"]


class Row(TypedDict):
    """One example."""

    image: np.ndarray
    """uint8 [height, width, 3]; one size throughout a source."""
    label: int
    """Position in `class_names`; 0, and without meaning, where a source has no classes."""
    caption: str
    """"" where a source has no captions."""
    reject: NotRequired[str]
    """Of a source that replaces rows which it cannot read: "", or why this one stands for another."""


class Source(Protocol):
    """Rows by number, the names of their classes, and a fingerprint of the content."""

    class_names: tuple[str, ...]
    """Empty where rows have no classes."""
    fingerprint: str
    """SHA-256, in hexadecimal, of what defines the rows and their order."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Row: ...


class ArraySource:
    """Images that are in memory already: uint8 [N, height, width, 3], with one label each where there are classes."""

    def __init__(self, images: np.ndarray, labels: Sequence[int] | np.ndarray = (), class_names: Sequence[str] = ()):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
            raise ValueError(
                f"images must be uint8 [N, height, width, 3] with N > 0; got {images.dtype} {images.shape}"
            )
        labels = np.asarray(labels, np.int64)
        if labels.shape != ((len(images),) if class_names else (0,)):
            raise ValueError(
                f"labels must be one per image with class_names, and none without; got {labels.shape} labels, "
                f"{len(images)} images and {len(class_names)} class_names"
            )
        if labels.size and (labels.min() < 0 or labels.max() >= len(class_names)):
            raise ValueError(f"labels must lie in 0..{len(class_names) - 1}; got {labels.min()}..{labels.max()}")
        self.class_names = tuple(class_names)
        self._images, self._labels = images, labels
        digest = hashlib.sha256(repr((images.shape, self.class_names)).encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(labels.data)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Row:
        label = int(self._labels[row]) if self.class_names else 0
        return {
            "image": self._images[row],
            "label": label,
            "caption": self.class_names[label] if self.class_names else "",
        }


def find_class(class_names: Sequence[str], query: str) -> int:
    """The label that `query` means: the exact name, else the only name that begins with it, else the only one with it.

    Case does not matter. Raises ValueError, listing the names, where there is none or more than one.
    """
    if not class_names:
        raise ValueError(f"class {query!r} cannot be found: this data has no classes")
    wanted = query.strip().casefold()
    names = [name.casefold() for name in class_names]
    matches: list[int] = []
    if wanted:
        for test in (str.__eq__, str.startswith, str.__contains__):
            matches = [label for label, name in enumerate(names) if test(name, wanted)]
            if matches:
                break
    if len(matches) == 1:
        return matches[0]
    found = f"fits {len(matches)} of" if matches else "is none of"
    raise ValueError(f"class {query!r} {found} these: {'; '.join(class_names)}")
