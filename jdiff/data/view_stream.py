"""The batches of a view, or of several by weight: the batch of step n is a pure function of (seed, n, view).

A batch is of one bucket, and `BucketOrder` says which rows are in it. A host's part of a batch is a slice of it. A row
that cannot be read is replaced by one that its number alone decides, and its reason stands in the batch. Crop, mirror,
colours and caption are drawn from (row, seed, epoch). Decoding goes to worker processes of Grain, if asked for.
"""

import collections
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from jdiff.data.bucket_order import BucketOrder
from jdiff.data.buckets import Buckets, Crop, crop, jitter
from jdiff.data.captions import Captioning
from jdiff.data.order import mix, uniform
from jdiff.data.pipeline import ahead
from jdiff.data.shards import Shards, readable
from jdiff.data.sources import Split
from jdiff.data.view import View

_PLAIN = Captioning()


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

    def _assemble(self, step: int, host: int, hosts: int) -> dict[str, np.ndarray]:
        """As `batch`, but the pictures uint8, which are a quarter to send from one process to another."""
        bucket, rows, epochs = self.plan(step)
        size = self.batch_size // hosts
        part = slice(host * size, (host + 1) * size)
        examples = [self._example(bucket, row, epoch) for row, epoch in zip(rows[part], epochs[part], strict=True)]
        image, original, corner = zip(*(example[0] for example in examples), strict=True)
        return {
            "image": np.stack(image),
            "index": (step * self.batch_size + np.arange(self.batch_size, dtype=np.int64))[part],
            "row": np.array([example[1] for example in examples], np.int64),
            "caption": np.array([example[2] for example in examples]),
            "reject": np.array([example[3] for example in examples]),
            "original_size": np.array(original, np.int32),
            "corner": np.array(corner, np.int32),
        }

    def _example(self, bucket: int, row: int, epoch: int) -> tuple[Crop, int, str, str]:
        """Picture, row, caption and "" or the reason why the row is not the one asked for."""
        read = lambda number: self._read(bucket, number, epoch)
        (shown, caption), row, reason = readable(int(row), self._order.rows[bucket], read, self._shard)
        return shown, row, caption, reason

    def _place(self, row: int) -> tuple[int, dict[str, Any]]:
        """The view of a row, and the row as it describes it."""
        view = int(np.searchsorted(self._starts, row, "right")) - 1
        return view, self._views[view].row(int(row - self._starts[view]))

    def _shard(self, row: int) -> str:
        view, described = self._place(row)
        return self._shards[view].name(described)

    def _read(self, bucket: int, row: int, epoch: int) -> tuple[Crop, str]:
        """Picture and caption of a row in one epoch. Raises `RejectError`."""
        view, described = self._place(row)
        identity = mix(np.array([row], np.uint64)) + np.uint64(epoch)
        draw = lambda purpose: float(uniform(identity, self.seed, purpose)[0])
        data = self._shards[view].read(described)
        mirrored = self._flip and draw("flip") < 0.5
        shown = crop(data, self.shapes[bucket], (draw("crop x"), draw("crop y")), mirrored)
        if self._jitter:
            draws = [draw(purpose) for purpose in ("brightness", "contrast", "saturation")]
            shown = shown._replace(image=jitter(shown.image, draws, self._jitter))
        tags = described["tags"] or []
        return shown, self._captioning.apply(described["caption"], tags, int(identity[0]), self.seed)

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

        `put`, if given, is called with each, two ahead of use, and what it gives is yielded: batches on devices.
        """
        self._order.check(start, host, hosts)
        steps = grain.MapDataset.range(sys.maxsize // self.batch_size)[start:]
        dataset = steps.map(_Assemble(self, host, hosts))
        if not workers:
            ready = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
        else:
            mark_flags_as_parsed()
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
            processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            ready = dataset.to_iter_dataset(options).mp_prefetch(processes)
        return iter(ahead(ready.map(_normalized), put))


class _Assemble:
    """A step to a host's slice of its batch; goes to worker processes."""

    def __init__(self, stream: ViewStream, host: int, hosts: int):
        self._stream, self._host, self._hosts = stream, host, hosts

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        return self._stream._assemble(int(step), self._host, self._hosts)


def _normalized(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    pixels = batch["image"]
    image = np.empty(pixels.shape, np.float32)
    for row, out in zip(pixels, image, strict=True):  # a picture at a time, which fits a cache
        np.divide(row, np.float32(127.5), out=out)
        np.subtract(out, np.float32(1), out=out)
    return batch | {"image": image}


def mark_flags_as_parsed() -> None:
    """Grain's processes read flags of absl, which only a program that absl starts has parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def rejected(batches: Sequence[dict[str, np.ndarray]]) -> collections.Counter[str]:
    """How many rows were replaced, by reason."""
    return collections.Counter(str(reason) for batch in batches for reason in batch["reject"] if reason)
