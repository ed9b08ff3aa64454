"""A finished or running run, opened to be looked at: nothing in its directory changes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jdiff.train.checkpoint import Checkpoints
from jdiff.train.run import read_experiment
from jdiff.train.state import TrainState
from jdiff.train.trainer import Trainer, assemble


@dataclasses.dataclass(frozen=True)
class Run:
    """The pieces of a run, and what its manifest says."""

    directory: Path
    trainer: Trainer
    manifest: dict[str, Any]
    steps: list[int]  # of the checkpoints

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.manifest["data"]["classes"])

    def state(self) -> TrainState:
        """The newest checkpoint. Raises ValueError if there is none, or naming it if it cannot be read."""
        if not self.steps:
            raise ValueError(f"{self.directory} has no checkpoint yet")
        with Checkpoints(self.directory / "checkpoints") as checkpoints:
            return checkpoints.restore(self.steps[-1], self.trainer.abstract)


def open_run(directory: Path) -> Run:
    """The run in `directory`. Raises ValueError if it is not one."""
    experiment = read_experiment(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    trainer = assemble(experiment, len(manifest["data"]["classes"]))
    if not (directory / "checkpoints").is_dir():
        return Run(directory, trainer, manifest, [])
    with Checkpoints(directory / "checkpoints") as checkpoints:
        return Run(directory, trainer, manifest, checkpoints.steps)
