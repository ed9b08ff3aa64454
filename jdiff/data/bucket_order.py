"""Which rows make the batch of a step, where rows lie in buckets: a pure function of (seed, step, rows).

A batch is of one bucket. Epoch e, of as many examples as there are rows, has floor((e + 1) R_b / B) - floor(e R_b / B)
batches of bucket b, where R_b is the bucket's share of the rows and B the batch size, in an order of its own; so what
does not fill a batch waits for the next epoch, and nothing is dropped or repeated. Within its bucket, each row comes up
once in as many examples as the bucket has rows. How many batches lie before an epoch is a closed formula, and which row
stands where is a permutation without a table: a step costs the same, and needs no memory, wherever it lies.
"""

from collections.abc import Sequence

import numpy as np

from jdiff.data.order import drawn, mix_seed, permuted, rows_at

_SHARE = 2**32
_AT_ONCE = 16
"""Batches of a bucket whose rows are worked out together: one of 64 takes 0.8 ms alone, all of these 2 ms."""


class BucketOrder:
    """The order of `rows`, numbers of the rows of each bucket.

    Without `weight`, of all rows, each comes up once an epoch; with it, its share of an epoch, rounded down or up and
    exact on average. Raises ValueError where batch_size or seed is none.
    """

    def __init__(self, rows: Sequence[np.ndarray], weight: np.ndarray | None = None, *, batch_size: int, seed: int):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0; got {seed}")
        self.rows, self.batch_size = rows, batch_size
        self._sums = [None if weight is None else np.cumsum(weight[part]) for part in rows]
        # Shares are whole numbers, so that no rounding moves a batch however far the stream has run.
        shares = np.array(
            [len(r) if s is None else s[-1] if len(s) else 0 for r, s in zip(rows, self._sums, strict=True)]
        )
        count = sum(map(len, rows))
        self._shares = [round(float(share) / float(shares.sum()) * count * _SHARE) for share in shares]
        self._keys = np.random.SeedSequence(seed).generate_state(1 + len(rows))
        self._recent: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}

    def _before(self, epoch: int) -> list[int]:
        """How many batches of each bucket lie before an epoch."""
        return [epoch * share // (self.batch_size * _SHARE) for share in self._shares]

    def plan(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Bucket, rows [B] and epochs [B] of the batch of a step."""
        low, high = 0, 1
        while sum(self._before(high)) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sum(self._before(middle)) <= step else (low, middle)
        begin, end = np.array(self._before(low)), np.array(self._before(low + 1))
        place = np.array([step - begin.sum()], np.uint64)
        ends = np.cumsum(end - begin)
        # One bucket has its order from its rows already; shuffled batches would blur where its epochs end.
        shuffled = np.count_nonzero(self._shares) > 1
        turn = permuted(place, int(ends[-1]), mix_seed(np.array([low]), self._keys[0]))[0] if shuffled else place[0]
        bucket = int(np.searchsorted(ends, turn, "right"))
        number = int(begin[bucket] + turn - (ends[bucket - 1] if bucket else 0))
        chosen, epochs = (part[number % _AT_ONCE].copy() for part in self._together(bucket, number // _AT_ONCE))
        return bucket, chosen, epochs

    def _together(self, bucket: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and epochs [_AT_ONCE, B] of a block of batches of a bucket; the bucket's last block is kept."""
        recent = self._recent.get(bucket)
        if recent is None or recent[0] != block:
            size = _AT_ONCE * self.batch_size
            index = block * size + np.arange(size, dtype=np.int64)
            rows, sums, key = self.rows[bucket], self._sums[bucket], self._keys[1 + bucket]
            chosen = rows_at(index, len(rows), key) if sums is None else drawn(index, sums, key)
            shape = _AT_ONCE, self.batch_size
            recent = block, rows[chosen].reshape(shape), (index // len(rows)).reshape(shape)
            self._recent[bucket] = recent
        return recent[1:]

    def check(self, step: int, host: int, hosts: int) -> None:
        """Raises ValueError where there is no such step, or no such slice of its batch."""
        if step < 0:
            raise ValueError(f"step must be at least 0; got {step}")
        if hosts < 1 or self.batch_size % hosts or not 0 <= host < hosts:
            raise ValueError(
                f"hosts must divide batch_size {self.batch_size}, and host be in 0..hosts - 1; got {host} of {hosts}"
            )
