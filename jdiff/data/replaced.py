"""Counts of the rows that training could not read and replaced, by reason, and the rate that stops a run.

Counts belong to steps, so they do not depend on how far batches are made ahead. A run stops where the rate is above the
limit by three standard deviations of the count; a limit of 0 allows none.
"""

import collections
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


class Replaced:
    """Counts of one process's rows; `most` is the share of rows that may be replaced."""

    def __init__(self, most: float):
        self._most, self._seen = most, 0
        self._total: collections.Counter[str] = collections.Counter()
        self._steps: dict[int, collections.Counter[str]] = {}

    def counting(self, put: Callable[[dict[str, np.ndarray]], Any], batch_size: int) -> Callable[[Any], Any]:
        """`put`, which counts what each batch says under `reject`. Raises ValueError where too many are replaced."""

        def counted(batch: dict[str, np.ndarray]) -> Any:
            if "reject" in batch:
                self.add(int(batch["index"][0]) // batch_size, batch["reject"].tolist())
            return put(batch)

        return counted

    def add(self, step: int, reasons: Iterable[str]) -> None:
        """The reasons of a step's rows, "" for those that were read. Raises ValueError where too many were not."""
        reasons = list(reasons)
        found = collections.Counter(reason for reason in reasons if reason)
        self._seen += len(reasons)
        if not found:
            return
        self._steps[step] = found
        self._total += found
        count = self._total.total()
        if count - (3 * math.sqrt(count) if self._most else 0) > self._most * self._seen:
            told = ", ".join(f"{reason} {number}" for reason, number in self._total.most_common())
            raise ValueError(
                f"{count} of {self._seen} rows could not be read and were replaced, more than data.max_replaced "
                f"{self._most} allows: {told}; index the shards and filter again, or allow more"
            )

    def metrics(self, step: int) -> dict[str, int]:
        """Metrics of the steps before `step`, each step once: `replaced`, and `replaced: REASON`; none where all rows
        were read."""
        done = [number for number in list(self._steps) if number < step]
        found = sum((self._steps.pop(number) for number in done), collections.Counter())
        by_reason = {f"replaced: {reason}": count for reason, count in sorted(found.items())}
        return {"replaced": found.total(), **by_reason} if found else {}
