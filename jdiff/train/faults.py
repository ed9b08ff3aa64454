"""Updates that go wrong: which are skipped, when a run goes back to a checkpoint, and when it gives up.

An update is skipped where its loss or its gradient is not finite, or where the gradient's norm leaps: parameters,
averages and optimizer stay as they were, and the step is counted. What is skipped once or twice is a bad batch. Many in
a row are a state that has gone bad, and the run goes back; if that happens again and again it is no accident of the
machine, and the run stops.

With activations in float16 a scale of the loss that was too large is no fault (`scaling.py`): what is skipped for it is
counted, and begins no row.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from jdiff.typing import Array

_MEMORY = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """What a run bears."""

    spike: float | None = None
    """Skip an update whose gradient's norm is more than this many times its running mean; None: only what is not
    finite."""
    skips: int = 8
    """Skipped updates in a row after which the run goes back to its last checkpoint."""
    rollbacks: int = 2
    """Times that it goes back before it stops, and leaves what `jdiff replay` needs."""
    hang_seconds: float = 3600.0
    """A step that takes longer ends the run, and every process prints where it stands."""
    check_every: int | None = None
    """Steps between updates that are made twice, from a copy of the state, and whose results and copies on all devices
    are compared; the run ends where they differ. None for never."""

    def __post_init__(self):
        if self.spike is not None and not self.spike > 1:
            raise ValueError(f"faults.spike must be above 1, or None; got {self.spike}")
        if self.skips < 1 or self.rollbacks < 0:
            raise ValueError(
                f"faults.skips must be at least 1 and faults.rollbacks at least 0; got {self.skips}, {self.rollbacks}"
            )
        if self.check_every is not None and self.check_every < 1:
            raise ValueError(f"faults.check_every must be at least 1, or None; got {self.check_every}")
        if not self.hang_seconds > 0:
            raise ValueError(f"faults.hang_seconds must be positive; got {self.hang_seconds}")


class Skipped(NamedTuple):
    """What has been skipped so far; a part of the state."""

    total: Array  # int32 []
    in_a_row: Array  # int32 [], up to the last update
    norm: Array  # float32 [], running mean of the gradients' norms of the updates made; 0 before the first


def none_skipped() -> Skipped:
    """Before the first update."""
    return Skipped(jnp.int32(0), jnp.int32(0), jnp.float32(0))


def judge(
    faults: Faults, skipped: Skipped, loss: Array, norm: Array, overflow: Array | bool = False
) -> tuple[Array, Skipped]:
    """Whether an update of this loss and this norm of the gradient is made (bool []), and the counts after it;
    `overflow` where a scale is to blame.

    After `faults.skips` in a row none is made any more, so that a loop may look at the counts later.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & (skipped.in_a_row < faults.skips)
    if faults.spike is not None:
        good &= (skipped.norm == 0) | (norm <= faults.spike * skipped.norm)
    weight = jnp.where(skipped.norm == 0, 0.0, _MEMORY)
    mean = jnp.where(good, weight * skipped.norm + (1 - weight) * norm, skipped.norm)
    fault = ~good & ~((skipped.in_a_row == 0) & overflow)
    return good, Skipped(skipped.total + ~good, (skipped.in_a_row + 1) * fault, mean)
