"""A finished or running run, opened to be looked at: nothing in its directory changes."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from jdiff.train.checkpoint import Checkpoints
from jdiff.train.description import steps_in
from jdiff.train.paths import Moved, absolute, moved
from jdiff.train.run import read_experiment, read_manifest
from jdiff.train.state import TrainState
from jdiff.train.trainer import Trainer, assemble


@dataclasses.dataclass(frozen=True)
class Run:
    """The pieces of a run, and what its manifest says."""

    directory: Path
    trainer: Trainer
    manifest: dict[str, Any]
    steps: list[int]  # of the checkpoints there were when it was opened

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.manifest["data"]["classes"])

    def state(self) -> TrainState:
        """The newest checkpoint that is whole; damaged ones before it are named on standard error. The run may go on
        meanwhile, and remove checkpoints. Raises ValueError if there is none, or naming it if it cannot be read."""
        with Checkpoints(self.directory / "checkpoints") as checkpoints:
            newest = checkpoints.newest(
                self.trainer.abstract, lambda damage: print(f"passed over: {damage}", file=sys.stderr, flush=True)
            )
        if newest is None:
            raise ValueError(f"{self.directory} has no checkpoint yet")
        return newest[1]


def open_run(directory: Path, data: Moved | None = None) -> Run:
    """The run in `directory`, with its data where `data` says that it lies now. Raises ValueError if it is not one."""
    experiment = read_experiment(directory)
    experiment = experiment if data is None else absolute(moved(experiment, data))
    manifest = read_manifest(directory)
    trainer = assemble(experiment, len(manifest["data"]["classes"]))
    return Run(directory, trainer, manifest, steps_in(directory / "checkpoints"))
