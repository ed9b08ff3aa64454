"""Snapshots of a run's power-function averages, kept for good, and what is put together from them."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdiff.train import ema
from jdiff.train.checkpoint import Checkpoints
from jdiff.train.keep import Keep
from jdiff.train.restore import Run
from jdiff.typing import Params

_ALL = Keep(every=1)


class Profiles(NamedTuple):
    """What a snapshot holds: `TrainState.profiles`."""

    params: dict[str, Params]


def folder(run: Path) -> Path:
    """Where a run's snapshots lie."""
    return run / "snapshots"


def open_snapshots(run: Path) -> Checkpoints:
    """For the run that takes them."""
    return Checkpoints(folder(run), _ALL)


def profile(run: Run, sigma_rel: float, step: int | None = None) -> tuple[Params, int]:
    """The average of relative width `sigma_rel` over the updates up to `step`, the last snapshot's unless given, and
    that step. Raises ValueError where there is no such snapshot, or for an impossible width."""
    widths = run.trainer.experiment.profiles
    abstract = Profiles(run.trainer.abstract.profiles)
    with Checkpoints(folder(run.directory)) as snapshots:
        steps = snapshots.steps
        at = step if step is not None else steps[-1] if steps else None
        if at not in steps:
            raise ValueError(f"{run.directory} has no snapshot of step {at}; it has {steps or 'none'} (profiles)")
        steps = [one for one in steps if one <= at]
        weights = ema.combination([(one, width) for one in steps for width in widths], at, sigma_rel)
        total: Any = jax.tree.map(jnp.zeros_like, run.trainer.abstract.params)
        for number, one in enumerate(steps):
            kept = snapshots.restore(one, abstract).params
            for place, width in enumerate(widths):
                weight = float(weights[number * len(widths) + place])
                total = jax.tree.map(lambda sum, leaf, w=weight: sum + w * leaf, total, kept[f"{width:g}"])
    return total, at
