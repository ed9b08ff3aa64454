"""What makes a run the one it is, and what may change while it goes on.

A run goes on only where everything is the same that its parameters depend on: data by its fingerprint (`run.py`),
network, process, parameterization, loss, times, optimizer, batch, seed, averages, and which updates are skipped. Others
may differ from one start to the next:

- the name, how samples are drawn and shown, and what is logged, kept and checked, and when;
- what changes rounding alone: the mesh, microbatches, scanned blocks and rematerialization;
- paths, as data may be moved;
- `steps`, where the learning rates of the updates that have been made would have been the same.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdiff.config import to_dict
from jdiff.experiment import Experiment
from jdiff.train.paths import FIELDS

_FREE = (
    "name", "sampling", "mesh", "accumulate", "network.compute.remat", "network.compute.scan",
    "faults.rollbacks", "faults.hang_seconds", "faults.check_every", "keep", "log_every", "checkpoint_every",
    "checkpoint_minutes", "sample_every", "snapshot_every", "steps", "data.max_replaced",
    *(f"data.{field}" for field in FIELDS),
)  # fmt: skip
_SHOWN = 5


def differences(before: Experiment, after: Experiment, done: int) -> list[str]:
    """The fields, with both values, for which `after` cannot go on with what `before` has made in `done` updates."""
    wrong = [
        f"{name} is {old!r} there and {new!r} here"
        for name, old, new in _unequal(to_dict(before), to_dict(after))
        if not _is_free(name, before, after, done)
    ]
    wrong = wrong if len(wrong) <= _SHOWN else [*wrong[:_SHOWN], f"and {len(wrong) - _SHOWN} more"]
    return wrong or _of_steps(before, after, done)


def _unequal(old: dict[str, Any], new: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted names of what differs, and both values; of two classes the names alone."""
    if old.get("type") != new.get("type"):
        yield f"{path}type", old.get("type"), new.get("type")
        return
    for name in old:
        one, other = old[name], new[name]
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _unequal(one, other, f"{path}{name}.")
        elif one != other:
            yield f"{path}{name}", one, other


def _is_free(name: str, before: Experiment, after: Experiment, done: int) -> bool:
    if name == "keep.metric":  # what was kept was measured by the other
        return after.keep.best == 0
    if name == "accumulate":
        return not (before.verify_determinism or after.verify_determinism)
    if name == "init":  # not read any more once there is a checkpoint, and then no longer to be told wrongly
        return done == 0
    return any(name == free or name.startswith(f"{free}.") for free in _FREE)


def _of_steps(before: Experiment, after: Experiment, done: int) -> list[str]:
    told = f"steps is {before.steps} there and {after.steps} here"
    if after.steps == before.steps or not done:
        return []
    if after.steps < done:
        return [f"{told}, and {done} have been made"]
    made = jnp.arange(1, done + 1)
    old, new = (np.asarray(one.optimizer.schedule(one.steps)(made)) for one in (before, after))
    if not np.array_equal(old, new):
        decay = after.optimizer.decay
        return [f"{told}, which with optimizer.decay={decay} changes the learning rate of the {done} updates made"]
    return []
