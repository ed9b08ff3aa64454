"""The batches of a view, or of several by weight: the batch of step n is a pure function of (seed, n, view).

A batch is of one bucket, and `BucketOrder` says which rows are in it. A host's part of a batch is a slice of it. A row
that cannot be read is replaced by one that its number alone decides, and its reason stands in the batch. Crop, mirror,
colours and caption are drawn from (row, seed, epoch). Decoding goes to worker processes of Grain, if asked for.
"""

import collections
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np

from jdiff.data.bucket_order import BucketOrder
from jdiff.data.buckets import Buckets, Crop, crop, jitter
from jdiff.data.captions import Captioning
from jdiff.data.order import mix, uniform
from jdiff.data.pipeline import ahead, floats
from jdiff.data.shards import Shards, on_their_way, readable
from jdiff.data.slots import Received, Sent, Slots
from jdiff.data.sources import Split
from jdiff.data.view import View

_PLAIN = Captioning()
_SMALL = 2**18
_READ = ("shard", "offset", "size", "sha256", "caption", "tags")
_PURPOSES = ("flip", "crop x", "crop y", "brightness", "contrast", "saturation")


class _Drawn(NamedTuple):
    """A row in one epoch: the number that all draws come from, and one in [0, 1) for each of `_PURPOSES`."""

    row: int
    epoch: int
    identity: int
    draws: list[float]


class _Begun(NamedTuple):
    """A row as its view describes it, and what gives the bytes of its image, which are on their way."""

    described: dict[str, Any]
    image: Callable[[], bytes]


class ViewStream:
    """Batches by step, of `views` (paths, with a relative weight each) in `buckets`.

    One view without weights gives every row once an epoch. With weights of rows, or several views, an epoch draws as
    many examples as there are rows: each view its share, each row its share of that, rounded down or up and exact on
    average. `split` keeps the rows of one side alone, as `ViewSource` does; without it, all are drawn. `jitter` is the
    strength of changes of colour, from 0 for none to below 1, and `captioning` what becomes of captions.

    A batch is a dict of `image` float32 [B, height, width, 3] in [-1, 1], `index` int64 [B] the global number of the
    example, `row` int64 [B] the row in the views put together, `caption` and `reject` ("" or why
    another row stands there) arrays of text, and `original_size`, `corner` int32 [B, 2] for SDXL's conditions.

    Raises ValueError where an argument does not fit or a view cannot be read.
    """

    def __init__(
        self,
        views: Sequence[tuple[str | Path, float]],
        *,
        buckets: Buckets,
        batch_size: int,
        seed: int,
        flip: bool = True,
        jitter: float = 0.0,
        captioning: Captioning = _PLAIN,
        split: Split | None = None,
    ):
        if not views or not all(0 < weight < float("inf") for _, weight in views):
            raise ValueError(f"views must each have a weight above 0; got {[(str(path), w) for path, w in views]}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be in [0, 1); got {jitter}")
        self.batch_size, self.seed, self.shapes = batch_size, seed, buckets.shapes
        self._flip, self._jitter, self._captioning = flip, jitter, captioning
        self._views = [View(path) for path, _ in views]
        self._starts = np.cumsum([0, *map(len, self._views)])
        self._shards = [Shards(view.shards) for view in self._views]
        width, height = (np.concatenate([view.column(side) for view in self._views]) for side in ("width", "height"))
        bucket = buckets.assign(width, height)
        held_out = np.concatenate([view.column("held_out") for view in self._views])
        kept = np.full(len(bucket), True) if split is None else held_out == (split == "held_out")
        for view, start in zip(self._views, self._starts[:-1], strict=True):
            if not kept[start : start + len(view)].any():
                raise ValueError(f"view {view.path} has {len(view)} rows and none of them is in the {split} split")
        weight = self._weights([share for _, share in views], kept)
        rows = [np.flatnonzero(kept & (bucket == number)) for number in range(len(self.shapes))]
        self._order = BucketOrder(rows, weight, batch_size=batch_size, seed=seed)
        marks = [(view.fingerprint, weight) for view, (_, weight) in zip(self._views, views, strict=True)]
        described = (marks, buckets, batch_size, seed, flip, jitter, captioning, split)
        self.fingerprint = hashlib.sha256(repr(described).encode()).hexdigest()
        """SHA-256 of all that decides the batches."""

    def _weights(self, shares: list[float], kept: np.ndarray) -> np.ndarray | None:
        """Of all rows, none for those that are not kept; None where all weigh the same."""
        own = [view.column("weight") for view in self._views]
        if len(own) == 1 and np.isnan(own[0]).all():
            return None
        filled = [
            np.where(np.isnan(weight), 1.0, weight) * kept[start : start + len(weight)]
            for weight, start in zip(own, self._starts[:-1], strict=True)
        ]
        return np.concatenate([weight * (share / weight.sum()) for weight, share in zip(filled, shares, strict=True)])

    def plan(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Bucket, rows [B] and epochs [B] of the batch of a step."""
        return self._order.plan(step)

    def batch(self, step: int, *, host: int = 0, hosts: int = 1) -> dict[str, np.ndarray]:
        """The slice of the batch of `step` that belongs to `host` of `hosts`."""
        self._order.check(step, host, hosts)
        return _normalized(self._assemble(step, host, hosts))

    def _assemble(self, step: int, host: int, hosts: int, slots: Slots | None = None) -> dict[str, Any]:
        """As `batch`, but the pictures uint8, in one of `slots` if there are any."""
        bucket, rows, epochs = self.plan(step)
        size = self.batch_size // hosts
        part = slice(host * size, (host + 1) * size)
        width, height = self.shapes[bucket]
        shape = size, height, width, 3
        images, sent = slots.empty(shape) if slots else (np.empty(shape, np.uint8), None)
        shown, read, captions, reasons = [], [], [], []
        drawn = self._drawn(rows[part], epochs[part])
        for place, (asked, begun) in enumerate(zip(drawn, self._begun(rows[part]), strict=True)):
            (picture, caption), row, reason = self._example(bucket, asked, begun)
            images[place] = picture.image
            shown.append((picture.original_size, picture.corner))
            read.append(row)
            captions.append(caption)
            reasons.append(reason)
        original, corner = np.array(shown, np.int32).swapaxes(0, 1)
        return {
            "image": images if sent is None else sent,
            "index": (step * self.batch_size + np.arange(self.batch_size, dtype=np.int64))[part],
            "row": np.array(read, np.int64),
            "caption": np.array(captions),
            "reject": np.array(reasons),
            "original_size": original,
            "corner": corner,
        }

    def _drawn(self, rows: np.ndarray, epochs: np.ndarray) -> list["_Drawn"]:
        """What is drawn for each row in its epoch."""
        identity = mix(rows.astype(np.uint64)) + epochs.astype(np.uint64)
        draws = np.stack([uniform(identity, self.seed, purpose) for purpose in _PURPOSES], 1)
        return list(map(_Drawn, rows.tolist(), epochs.tolist(), identity.tolist(), draws.tolist()))

    def _example(self, bucket: int, asked: "_Drawn", begun: "_Begun") -> tuple[tuple[Crop, str], int, str]:
        """Picture and caption, their row, and "" or the reason why it is not the one asked for."""

        def read(row: int) -> tuple[Crop, str]:
            if row == asked.row:
                return self._read(bucket, asked, begun)
            (own,) = self._drawn(np.array([row]), np.array([asked.epoch]))
            return self._read(bucket, own, *self._begun(np.array([row])))

        return readable(asked.row, self._order.rows[bucket], read, self._shard)

    def _places(self, rows: np.ndarray) -> list[tuple[int, dict[str, Any]]]:
        """The number of each row's view, and the row as that describes it."""
        views = np.searchsorted(self._starts, rows, "right") - 1
        found: list[tuple[int, dict[str, Any]]] = [(0, {})] * len(rows)
        for view in set(views.tolist()):
            own = np.flatnonzero(views == view)
            described = self._views[view].rows(rows[own] - self._starts[view], _READ)
            for place, row in zip(own.tolist(), described, strict=True):
                found[place] = view, row
        return found

    def _begun(self, rows: np.ndarray) -> Iterator["_Begun"]:
        """Each row with its image, while those of the next are on their way too."""
        placed = self._places(rows)
        return on_their_way(_Begun(described, self._shards[view].begin(described)) for view, described in placed)

    def _shard(self, row: int) -> str:
        ((view, described),) = self._places(np.array([row]))
        return self._shards[view].name(described)

    def _read(self, bucket: int, drawn: "_Drawn", begun: "_Begun") -> tuple[Crop, str]:
        """Picture and caption of a row in one epoch. Raises `RejectError`."""
        flip, x, y, *colours = drawn.draws
        shown = crop(begun.image(), self.shapes[bucket], (x, y), self._flip and flip < 0.5)
        if self._jitter:
            shown = shown._replace(image=jitter(shown.image, colours, self._jitter))
        tags = begun.described["tags"] or []
        return shown, self._captioning.apply(begun.described["caption"], tags, drawn.identity, self.seed)

    def batches(
        self,
        start: int = 0,
        *,
        host: int = 0,
        hosts: int = 1,
        workers: int = 0,
        put: Callable[[dict[str, np.ndarray]], Any] | None = None,
    ) -> Iterator[Any]:
        """The batches of steps `start`, start + 1, ..., made ahead by threads, or by `workers` processes.

        `put`, if given, is called with each, two ahead of use, and what it gives is yielded: batches on devices. The
        pictures it is given are uint8, a quarter to move; `floats` makes of them what they are without `put`.
        """
        self._order.check(start, host, hosts)
        steps = grain.MapDataset.range(sys.maxsize // self.batch_size)[start:]
        if not workers:
            dataset = steps.map(_Assemble(self, host, hosts, None))
            ready = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
        else:
            mark_flags_as_parsed()
            # A thread of its own would only wait for the lock of the one that decodes.
            dataset = steps.map(_Assemble(self, host, hosts, Slots()))
            processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            read = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0))
            # What is small goes through the pipe, which costs less than shared memory of its own, and leaves none.
            options = grain.experimental.DatasetOptions(min_shm_size=_SMALL)
            sent = grain.experimental.WithOptionsIterDataset(read, options).mp_prefetch(processes, _one_thread)
            ready = sent.map(_Receive())
        return iter(ahead(ready.map(_normalized) if put is None else ready, put))


class _Assemble:
    """A step to a host's slice of its batch; goes to worker processes."""

    def __init__(self, stream: ViewStream, host: int, hosts: int, slots: Slots | None):
        self._stream, self._host, self._hosts, self._slots = stream, host, hosts, slots

    def __call__(self, step: int) -> dict[str, Any]:
        return self._stream._assemble(int(step), self._host, self._hosts, self._slots)


class _Receive:
    """A batch as a worker process sent it, with its pictures."""

    def __init__(self):
        self._received = Received()

    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        image = batch["image"]
        return batch | {"image": self._received.array(image) if isinstance(image, Sent) else image}


def _normalized(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    pixels = batch["image"]
    image = np.empty(pixels.shape, np.float32)
    for row, out in zip(pixels, image, strict=True):  # a picture at a time, which fits a cache
        out[:] = floats(row)
    return batch | {"image": image}


def _one_thread(worker: int, workers: int) -> None:
    """Scaling shares its work among threads by itself, which workers do not need: there is one for each processor."""
    os.environ["RAYON_NUM_THREADS"] = "1"


def mark_flags_as_parsed() -> None:
    """Grain's processes read flags of absl, which only a program that absl starts has parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def rejected(batches: Sequence[dict[str, np.ndarray]]) -> collections.Counter[str]:
    """How many rows were replaced, by reason."""
    return collections.Counter(str(reason) for batch in batches for reason in batch["reject"] if reason)
