"""Rows to batches: the batch of step n is a pure function of (source, batch_size, seed, n), however it is reached.

The stream of examples is infinite: each epoch visits every row once, in an order of its own, and batches cross from
one epoch into the next, so nothing is dropped. Position p = n * batch_size + place is an example's identity: it
decides the row, the flip and, further on, the noise. Resuming at step n, replaying it, and reading its batch in
parts are all the same arithmetic.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from jdiff.data.order import coin, drawn, rows_at
from jdiff.data.sources import Source

Batch = dict[str, np.ndarray]
"""image: float32 [B, height, width, 3] in [-1, 1]; label: int32 [B], where there are classes; index: int64 [B]; reject:
text [B], "" or why another row stands there, where rows are replaced that cannot be read."""

_THREADS = 2
_BATCHES_AHEAD = 4
_ON_DEVICE = 2


def batches(
    source: Source, *, batch_size: int, seed: int, flip: bool, host: int = 0, hosts: int = 1
) -> grain.MapDataset:
    """The infinite stream of training batches of `source`: item n is the slice of the batch of step n that belongs to
    `host` of `hosts`.

    `seed` is any integer from 0 on. With `flip`, half of the examples are mirrored, drawn from the seed and the
    example's position. Raises ValueError where `batch_size` is not positive, `seed` is negative, `source` is empty, or
    `hosts` does not divide the batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if hosts < 1 or batch_size % hosts or not 0 <= host < hosts:
        raise ValueError(f"hosts must divide batch_size {batch_size}, and host be below it; got {host} of {hosts}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}")
    if not len(source):
        raise ValueError("source has no rows, so there is nothing to draw batches from")
    # Rows of a view may have weights.
    sums = getattr(source, "cumulative", None)
    order_seed, flip_seed = np.random.SeedSequence(seed).generate_state(2)

    def assemble(step: int) -> Batch:
        size = batch_size // hosts
        index = step * batch_size + host * size + np.arange(size, dtype=np.int64)
        rows = rows_at(index, len(source), order_seed) if sums is None else drawn(index, sums, order_seed)
        batch = _collate(source, rows, index)
        if flip:
            mirrored = coin(index, flip_seed)
            batch["image"][mirrored] = batch["image"][mirrored, :, ::-1]
        return batch

    return grain.MapDataset.range(sys.maxsize // batch_size).map(assemble)


def stream(dataset: grain.MapDataset, start: int, put: Callable[[Batch], Any] | None = None) -> Iterator[Any]:
    """Batches `start`, start + 1, ... of `dataset`, in order, each once; a few are made ahead in threads.

    `put`, if given, is called with each, two ahead of use, and what it gives is yielded: batches on devices.
    """
    if start < 0:
        raise ValueError(f"start must be at least 0; got {start}")
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
    return iter(ahead(dataset[start:].to_iter_dataset(options), put))


def ahead(dataset: grain.IterDataset, put: Callable[[Batch], Any] | None) -> grain.IterDataset:
    """`put` of each batch in a thread of its own, two ahead of use; `dataset` itself without it.

    Grain's own `device_put` does the same with `jax.device_put`, which takes no text, and no part of a batch that is
    spread over hosts.
    """
    if put is None:
        return dataset
    return grain.experimental.ThreadPrefetchIterDataset(dataset.map(put), prefetch_buffer_size=_ON_DEVICE)


def ordered(source: Source, batch_size: int, rows: int | None = None) -> Iterator[Batch]:
    """Every row once, or the first `rows`, in the order of the source and never mirrored; the last batch may be short.
    For evaluation."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    rows = len(source) if rows is None else rows
    for first in range(0, rows, batch_size):
        index = np.arange(first, min(first + batch_size, rows), dtype=np.int64)
        yield _collate(source, index, index)


def floats(pixels: Any) -> Any:
    """Pictures uint8 as float32 in [-1, 1], by NumPy or on a device."""
    return pixels / np.float32(127.5) - np.float32(1)


def _collate(source: Source, rows: np.ndarray, index: np.ndarray) -> Batch:
    # Those of a view are read together.
    many = getattr(source, "many", None)
    examples = many(rows) if many else [source[int(row)] for row in rows]
    image = np.stack([example["image"] for example in examples])
    batch = {"image": floats(image), "index": index}
    if source.class_names:
        batch["label"] = np.array([example["label"] for example in examples], np.int32)
    if examples and "reject" in examples[0]:
        batch["reject"] = np.array([example.get("reject", "") for example in examples])
    return batch
