"""Encoded latents as training data: the batch of step n is a pure function of (seed, n, folder), as for images.

A batch is of one bucket (`BucketOrder`). Latents are the mean of what the autoencoder says, and its spread beside them,
both scaled; which of the latents it is that an update trains on is drawn with the update's noise.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from jdiff.data.bucket_order import BucketOrder
from jdiff.data.buckets import nearest_shape
from jdiff.data.encoded import Encoded
from jdiff.data.limits import RejectError
from jdiff.data.order import uniform
from jdiff.data.pipeline import Batch, ahead
from jdiff.data.shards import readable
from jdiff.data.sources import Split


class LatentSource:
    """The rows of encoded latents that are on the side `split` and, where captions count, whose caption is encoded.

    A row is a dict of `image` and `spread`, float32 [h, w, c], scaled mean and standard deviation, and with captions
    `caption`, what the text encoders gave by name, float16. Raises ValueError where the folder is not encoded, has no
    row on this side, or other sizes, channels or tokens.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, folder: str, *, split: Split, size: int, channels: int, tokens: int):
        self.folder, self._encoded = folder, Encoded(folder)
        plan, table = self._encoded.plan, self._encoded.table
        self.captioned = tokens > 0
        if self.captioned and not plan["text"]:
            raise ValueError(f"{folder} holds no captions: encode with --text, or give data.tokens=0")
        kept = np.asarray(table["held_out"]) == (split == "held_out")
        if self.captioned:
            kept &= self._encoded.with_text()
        self.rows = np.flatnonzero(kept)
        if not len(self.rows):
            raise ValueError(f"{folder} has {len(table)} rows and none of them is in the {split} split")
        self.shapes = [(int(width), int(height)) for width, height in plan["buckets"]]
        self.bucket = nearest_shape(self.shapes, np.asarray(table["width"]), np.asarray(table["height"]))
        self.edge = max(min(shape) for shape in self.shapes)
        """Of a square picture, in pixels."""
        self._shift, self._scale = (np.asarray(plan["scaling"][name], np.float32) for name in ("shift", "scale"))
        self.autoencoder: str = plan["autoencoder"]
        """Fingerprint of what made the latents."""
        self.fingerprint = hashlib.sha256(repr((self._encoded.fingerprint, split, tokens)).encode()).hexdigest()
        self._check(size, channels, tokens)

    def _check(self, size: int, channels: int, tokens: int) -> None:
        first = int(self.rows[0])
        try:
            height, _, there = self._encoded.latents(first)[0].shape
            long = self.caption("")["text"].shape[0] if self.captioned else 0
        except RejectError as reason:
            raise ValueError(f"{self.shard(first)} cannot be read: {reason}; `jdiff data encode` again") from reason
        factor = self.shapes[self.bucket[first]][1] // height
        if channels != there or (size * factor, size * factor) not in self.shapes:
            sides = ", ".join(f"{w // factor} x {h // factor}" for w, h in self.shapes)
            raise ValueError(
                f"data.size {size} and data.channels {channels}: {self.folder} holds latents of {sides}, with {there} "
                "channels"
            )
        if self.captioned and long != tokens:
            raise ValueError(f"data.tokens {tokens}: the captions of {self.folder} have {long}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return readable(int(self.rows[row]), self.rows, self.read, self.shard)[0]

    def shard(self, number: int) -> str:
        """Where a row of the folder is, to be named in an error."""
        return f"{self.folder}/latents, row {number}"

    def caption(self, caption: str | bytes) -> dict[str, np.ndarray]:
        """What the text encoders gave for a caption or its SHA-256. Raises KeyError where it was not encoded."""
        return self._encoded.text(caption)

    def without_caption(self) -> dict[str, np.ndarray]:
        """The `caption` of a square picture that says nothing."""
        return self.caption("") | {"time_ids": np.array([self.edge, self.edge, 0, 0, self.edge, self.edge], np.float32)}

    def read(self, number: int, without: bool = False) -> dict[str, Any]:
        """Row `number` of the folder, with its caption or, `without` it, with "". Raises `RejectError`."""
        described = self._encoded.row(number)
        mean, std = self._encoded.latents(number)
        image = (mean.astype(np.float32) - self._shift) * self._scale
        example: dict[str, Any] = {"image": image, "spread": std.astype(np.float32) * np.abs(self._scale)}
        if self.captioned:
            width, height = self.shapes[self.bucket[number]]
            # What SDXL is told of a picture (2307.01952, section 2.2): its size in full, the crop's corner, its size.
            told = [described[name] for name in ("height", "width", "top", "left")]
            texts = self.caption("" if without else described["caption"])
            example["caption"] = texts | {"time_ids": np.array([*told, height, width], np.float32)}
        return example


class LatentStream:
    """Batches by step of a source: `image` and `spread` float32 [B, h, w, c], `index` int64 [B], and with captions what
    their encoders gave, by name, and `time_ids` float32 [B, 6]. `caption_dropout` is the share of examples whose
    caption is "", drawn from the example's number. Raises ValueError where an argument does not fit."""

    def __init__(self, source: LatentSource, *, batch_size: int, seed: int, caption_dropout: float):
        if not 0 <= caption_dropout < 1:
            raise ValueError(f"caption_dropout must be in [0, 1); got {caption_dropout}")
        bucket = source.bucket[source.rows]
        rows = [source.rows[bucket == number] for number in range(len(source.shapes))]
        self._source, self._seed, self._dropout = source, seed, caption_dropout
        self._order = BucketOrder(rows, batch_size=batch_size, seed=seed)

    def batch(self, step: int, *, host: int = 0, hosts: int = 1) -> Batch:
        """The slice of the batch of `step` that belongs to `host` of `hosts`."""
        self._order.check(step, host, hosts)
        bucket, rows, _ = self._order.plan(step)
        size = self._order.batch_size // hosts
        part = slice(host * size, (host + 1) * size)
        index = (step * self._order.batch_size + np.arange(self._order.batch_size, dtype=np.int64))[part]
        without = uniform(index, self._seed, "caption dropout") < self._dropout
        examples, reasons = [], []
        for row, bare in zip(rows[part], without, strict=True):
            read = lambda number, bare=bool(bare): self._source.read(number, bare)
            example, _, reason = readable(int(row), self._order.rows[bucket], read, self._source.shard)
            examples.append(example | example.pop("caption", {}))
            reasons.append(reason)
        stacked = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        return stacked | {"index": index, "reject": np.array(reasons)}

    def batches(
        self, start: int, *, host: int = 0, hosts: int = 1, put: Callable[[Batch], Any] | None = None
    ) -> Iterator[Any]:
        """The batches of steps `start`, start + 1, ..., made ahead by threads; `put` as for `jdiff.data.stream`."""
        self._order.check(start, host, hosts)
        steps = grain.MapDataset.range(sys.maxsize // self._order.batch_size)[start:]
        dataset = steps.map(lambda step: self.batch(int(step), host=host, hosts=hosts))
        return iter(ahead(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)), put))
