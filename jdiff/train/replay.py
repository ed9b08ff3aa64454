"""What a run leaves when it gives up: a small run directory from which the update that failed can be made again.

fault.json holds the step, the examples of its batch, and the loss and the gradient's norm that it had.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdiff.atomic_files import write_atomically
from jdiff.data import open_source
from jdiff.experiment import Experiment, fingerprint
from jdiff.json_files import read_object
from jdiff.parallel import wait_for_all
from jdiff.train.checkpoint import Checkpoints
from jdiff.train.faults import Skipped
from jdiff.train.restore import Run
from jdiff.train.scaling import Scaled
from jdiff.train.state import TrainState

_FIGURES = ("loss", "grad_norm")


def leave(directory: Path, experiment: Experiment, state: TrainState, metrics: dict[str, float]) -> Path:
    """Writes the bundle of the first of the updates that have just been skipped in a row, whose metrics are given.

    What is skipped leaves parameters as they were, so `state`, but for its counts and the scale of the loss, is the one
    before.
    """
    in_a_row = int(state.skipped.in_a_row)
    step = int(state.step) - in_a_row + 1
    total = state.skipped.total - in_a_row
    before = state._replace(step=state.step - in_a_row, skipped=Skipped(total, total * 0, state.skipped.norm))
    if isinstance(state.opt_state, Scaled):
        scale = state.opt_state.scale
        scale = scale._replace(value=scale.value * 0 + metrics["loss_scale"])
        before = before._replace(opt_state=state.opt_state._replace(scale=scale))
    bundle = directory / "replay" / f"step_{step}"
    if jax.process_index() == 0:
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.mkdir(parents=True)
        for name in ("config.json", "manifest.json"):
            shutil.copy(directory / name, bundle / name)
    wait_for_all("the bundle is begun")
    index = (step - 1) * experiment.batch_size + np.arange(experiment.batch_size)
    fault = {"step": step, "index": index.tolist()} | {name: metrics[name] for name in _FIGURES}
    with Checkpoints(bundle / "checkpoints") as checkpoints:
        checkpoints.save(step - 1, before, fingerprint(experiment))
    if jax.process_index() == 0:
        write_atomically(bundle / "fault.json", json.dumps(fault, indent=2) + "\n")
    return bundle


def replay(run: Run) -> dict[str, Any]:
    """Makes the failed update of a bundle again: what it gives, what it gave, and whether these are equal to the bit.

    Raises ValueError where the run is no bundle, or where its data has changed.
    """
    path = run.directory / "fault.json"
    if not path.is_file():
        raise ValueError(f"{run.directory} is no replay bundle: it has no fault.json")
    fault = read_object(path)
    for name, kind in ({"step": (int,), "index": (list,)} | dict.fromkeys(_FIGURES, (int, float))).items():
        if type(fault.get(name)) not in kind:
            raise ValueError(f"{path}: {name} is {str(fault.get(name))[:100]!r}, which is no figure of an update")
    experiment = run.trainer.experiment
    source = open_source(experiment.data, "train")
    if source.fingerprint != run.manifest["data"]["fingerprint"]:
        raise ValueError(f"the data of {run.directory} has changed since its run was started")
    stream = run.trainer.batches(source, fault["step"] - 1)
    state = run.state()
    _, metrics = run.trainer.step()(state, next(stream))
    again = {name: float(metrics[name]) for name in _FIGURES}
    same = all(np.array_equal(again[name], fault[name], equal_nan=True) for name in _FIGURES)
    return {"step": fault["step"], "index": fault["index"], "then": {k: fault[k] for k in _FIGURES}} | {
        "now": again,
        "skipped": bool(metrics["skipped_in_a_row"]),
        "same": same,
    }
