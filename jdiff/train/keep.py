"""Which checkpoints of a run stay, and when one is due by the clock."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints stay: any that one of the fields names."""

    latest: int = 3
    """As many of the newest."""
    every: int | None = None
    """Those of steps that are multiples of this; None for none."""
    best: int = 0
    """As many of the lowest `metric`."""
    metric: Literal["loss", "held_out_loss"] = "loss"
    """What `best` goes by: the loss of training, averaged over the updates since the checkpoint before; or that of
    held-out data by the averaged parameters, which is then measured at each checkpoint (held_out.jsonl)."""

    def __post_init__(self):
        if self.metric not in ("loss", "held_out_loss"):
            raise ValueError(f"keep.metric must be loss or held_out_loss; got {self.metric!r}")
        for field, least in (("latest", 1), ("every", 1), ("best", 0)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(f"keep.{field} must be at least {least}; got {value}")

    def chosen(self, steps: Sequence[int], loss: Callable[[int], float | None]) -> set[int]:
        """Those of the ascending `steps` that stay; `loss(step)` is what `best` goes by, None for what has none."""
        stay = set(steps[-self.latest :])
        if self.every is not None:
            stay |= {step for step in steps if step % self.every == 0}
        if self.best:
            losses = {step: value for step in steps if (value := loss(step)) is not None}
            stay |= set(sorted(losses, key=lambda step: losses[step])[: self.best])
        return stay


class Due:
    """Whether a checkpoint is due, so many minutes after the last one; never without. To be asked by every process of a
    run, at the same step: the first one's clock counts."""

    def __init__(self, minutes: float | None):
        self._seconds = None if minutes is None else 60 * minutes
        self.done()

    def __call__(self) -> bool:
        if self._seconds is None:
            return False
        due = time.monotonic() - self._last >= self._seconds
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(due))) if jax.process_count() > 1 else due

    def done(self) -> None:
        """There has just been one."""
        self._last = time.monotonic()
