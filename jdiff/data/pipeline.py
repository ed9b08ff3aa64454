"""Rows to batches: the batch of step n is a pure function of (source, batch_size, seed, n), however it is reached.

The stream of examples is infinite: each epoch visits every row once, in an order of its own, and batches cross from
one epoch into the next, so nothing is dropped. Position p = n * batch_size + place is an example's identity: it
decides the row, the flip and, further on, the noise. Resuming at step n, replaying it, and reading its batch in
parts are all the same arithmetic.
"""

import sys
from collections.abc import Iterator

import grain
import numpy as np

from jdiff.data.sources import Source

Batch = dict[str, np.ndarray]
"""image: float32 [B, height, width, 3] in [-1, 1]; label: int32 [B], where there are classes; index: int64 [B]."""

_THREADS = 2
_BATCHES_AHEAD = 4
_ROUNDS = 8


def batches(source: Source, *, batch_size: int, seed: int, flip: bool) -> grain.MapDataset:
    """The infinite stream of training batches of `source`: item n is the batch of step n.

    `seed` is any integer from 0 on. With `flip`, half of the examples are mirrored, drawn from the seed and the
    example's position. Raises ValueError where `batch_size` is not positive, `seed` is negative or `source` is empty.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}")
    if not len(source):
        raise ValueError("source has no rows, so there is nothing to draw batches from")
    order_seed, flip_seed = np.random.SeedSequence(seed).generate_state(2)

    def assemble(step: int) -> Batch:
        index = step * batch_size + np.arange(batch_size, dtype=np.int64)
        batch = _collate(source, _rows_at(index, len(source), order_seed), index)
        if flip:
            mirrored = _coin(index, flip_seed)
            batch["image"][mirrored] = batch["image"][mirrored, :, ::-1]
        return batch

    return grain.MapDataset.range(sys.maxsize // batch_size).map(assemble)


def stream(dataset: grain.MapDataset, start: int) -> Iterator[Batch]:
    """Batches `start`, start + 1, ... of `dataset`, in order, each once; a few are made ahead in threads."""
    if start < 0:
        raise ValueError(f"start must be at least 0; got {start}")
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
    return iter(dataset[start:].to_iter_dataset(options))


def ordered(source: Source, batch_size: int) -> Iterator[Batch]:
    """Every row once, in the order of the source and never mirrored; the last batch may be short. For evaluation."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    for first in range(0, len(source), batch_size):
        index = np.arange(first, min(first + batch_size, len(source)), dtype=np.int64)
        yield _collate(source, index, index)


def _collate(source: Source, rows: np.ndarray, index: np.ndarray) -> Batch:
    examples = [source[int(row)] for row in rows]
    image = np.stack([example["image"] for example in examples])
    batch = {"image": image.astype(np.float32) / np.float32(127.5) - np.float32(1), "index": index}
    if source.class_names:
        batch["label"] = np.array([example["label"] for example in examples], np.int32)
    return batch


def _rows_at(index: np.ndarray, rows: int, seed: np.uint32) -> np.ndarray:
    """The row at each position: in every epoch of `rows` positions, each row once, in an order of the epoch's own.

    A Feistel network permutes the next power of four, and is applied again where it leads outside (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002). No table, no state, and whole batches at once: Grain's own shuffle
    gives the same guarantees one example at a time, at 2 us each for 10^6 rows but 26 us for 846 and 500 us for 37.
    Below eight rows every order occurs, some more often than others.
    """
    epoch, place = np.divmod(index.astype(np.uint64), np.uint64(rows))
    key = _mix(epoch + (np.uint64(seed) << np.uint64(32)))
    # On few bits the network favours some places; starting from a random one in every epoch evens that out.
    place = (place + _mix(key + np.uint64(_ROUNDS)) % rows) % rows
    half = np.uint64(((rows - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    outside = np.ones(len(place), bool)
    while outside.any():
        left, right = place[outside] >> half, place[outside] & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ (key[outside] + np.uint64(number))) & mask)
        place[outside] = (left << half) | right
        outside = place >= rows
    return place.astype(np.int64)


def _coin(index: np.ndarray, seed: np.uint32) -> np.ndarray:
    """Heads or tails for each position."""
    return _mix(index.astype(np.uint64) + (np.uint64(seed) << np.uint64(32))) >> np.uint64(63) == 1


def _mix(bits: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood, 2014) as a hash of 64 bits: no state, any order, the same on every machine."""
    bits = bits * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
