"""A view as a source of square images, for training as any other data."""

import hashlib
from pathlib import Path

import numpy as np

from jdiff.data.buckets import crop
from jdiff.data.shards import Shards, readable
from jdiff.data.sources import Row, Split
from jdiff.data.view import View


class ViewSource:
    """The rows of the view at `path` that are on the side `split`, as centre squares of `size` pixels.

    A row is held out when the SHA-256 of its image lies in the lowest tenth. A row that cannot be read is replaced by
    one that its number alone decides. Raises ValueError where the view cannot be read, has no row on this side of the
    split or, naming the shard, where nothing that stands in for a row can be read either.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, path: str | Path, *, split: Split, size: int):
        self._view = View(path)
        self._shards = Shards(self._view.shards)
        self._rows = np.flatnonzero(self._view.column("held_out") == (split == "held_out"))
        if not len(self._rows):
            raise ValueError(f"view {path} has {len(self._view)} rows and none of them is in the {split} split")
        weight = self._view.column("weight")[self._rows]
        self.cumulative = None if np.isnan(weight).all() else np.cumsum(weight)
        """Running sums of the rows' weights; None where each is drawn once an epoch."""
        self._size = size
        self.fingerprint = hashlib.sha256(repr((self._view.fingerprint, split, size)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Row:
        shard = lambda number: self._shards.name(self._view.row(number))
        return readable(int(self._rows[row]), self._rows, self._read, shard)[0]

    def _read(self, number: int) -> Row:
        described = self._view.row(number)
        shown = crop(self._shards.read(described), (self._size, self._size), (0.5, 0.5), False)
        return {"image": shown.image, "label": 0, "caption": described["caption"]}
