"""A view as a source of square images, for training as any other data."""

import hashlib
from pathlib import Path

import numpy as np

from jdiff.data.buckets import crop
from jdiff.data.headers import RejectError
from jdiff.data.order import mix
from jdiff.data.shards import Shards
from jdiff.data.sources import Row, Split
from jdiff.data.view import View

_TRIES = 32


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
        for attempt in range(_TRIES):
            place = row if not attempt else mix(np.array([row * _TRIES + attempt], np.uint64))[0] % np.uint64(len(self))
            described = self._view.row(int(self._rows[int(place)]))
            try:
                shown = crop(self._shards.read(described), (self._size, self._size), (0.5, 0.5), False)
                return {"image": shown.image, "label": 0, "caption": described["caption"]}
            except RejectError as error:
                reason = error
        shard = self._shards.name(described)
        raise ValueError(f"row {row} and {_TRIES - 1} in its place cannot be read: {reason}; the last was of {shard}")
