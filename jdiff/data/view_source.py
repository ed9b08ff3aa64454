"""A view as a source of square images, for training as any other data."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jdiff.data.buckets import crop
from jdiff.data.shards import Shards, on_their_way, readable
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
        return self.many(np.array([row]))[0]

    def many(self, rows: np.ndarray) -> list[Row]:
        """Each of `rows`; their reads are waited for together."""
        numbers = self._rows[rows]
        begun = on_their_way((row, self._shards.begin(row)) for row in self._view.rows(numbers))
        return [self._shown(number, *one) for number, one in zip(numbers.tolist(), begun, strict=True)]

    def _shown(self, asked: int, described: dict[str, Any], image: Callable[[], bytes]) -> Row:
        def read(number: int) -> Row:
            own = described if number == asked else self._view.row(number)
            data = image() if number == asked else self._shards.read(own)
            shown = crop(data, (self._size, self._size), (0.5, 0.5), False)
            return {"image": shown.image, "label": 0, "caption": own["caption"], "reject": ""}

        shard = lambda number: self._shards.name(self._view.row(number))
        row, _, reason = readable(asked, self._rows, read, shard)
        return row if not reason else {**row, "reject": reason}
