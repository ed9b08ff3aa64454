"""`jdiff checkpoint VERB RUN`: what a run has saved, whether it is whole, and its weights as safetensors."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jdiff.cli.arguments import Verbs, chosen, show
from jdiff.interop.tensors import save_tensors
from jdiff.train.checkpoint import Checkpoints, DamagedError
from jdiff.train.restore import open_run
from jdiff.train.snapshots import profile

_LISTED = ("schema", "experiment", "digest", "loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looked:
    """What `jdiff checkpoint list` and `verify` take."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run directory."""
    json: bool = False
    """Print as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What `jdiff checkpoint export` takes."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run directory."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder of the safetensors file and of the run's config."""
    step: int | None = None
    """Of the checkpoint; the newest if not given."""
    raw: bool = False
    """The parameters themselves rather than their average."""
    sigma_rel: float | None = None
    """The average of this relative width, put together from the snapshots of a run with `profiles`."""
    json: bool = False
    """Print as JSON."""


def _list(arguments: Looked) -> None:
    run = open_run(arguments.run)
    rows = []
    with Checkpoints(run.directory / "checkpoints") as checkpoints:
        for step in run.steps:
            files = (run.directory / "checkpoints" / str(step)).rglob("*")
            row = {"step": step, "bytes": sum(path.stat().st_size for path in files if path.is_file())}
            try:
                about = checkpoints.about(step)
                rows.append(row | {name: about[name] for name in _LISTED if name in about})
            except DamagedError as error:
                rows.append(row | {"damage": str(error)})
    lines = [
        f"step {row['step']:>8}  {row['bytes'] / 1e6:8.1f} MB  "
        + (row["damage"] if "damage" in row else f"schema {row['schema']}  digest {row['digest']:08x}")
        + (f"  loss {row['loss']:.4f}" if "loss" in row else "")
        for row in rows
    ]
    show(arguments, rows, *(lines or [f"{arguments.run} has no checkpoint yet"]))


def _verify(arguments: Looked) -> None:
    run = open_run(arguments.run)
    rows = []
    with Checkpoints(run.directory / "checkpoints") as checkpoints:
        for step in run.steps:
            try:
                checkpoints.restore(step, run.trainer.abstract)
                rows.append({"step": step, "whole": True})
            except ValueError as error:
                rows.append({"step": step, "whole": False, "damage": str(error)})
    lines = [f"step {row['step']:>8}  {row.get('damage', 'whole')}" for row in rows]
    show(arguments, rows, *(lines or [f"{arguments.run} has no checkpoint yet"]))
    if not all(row["whole"] for row in rows):
        sys.exit(1)


def _export(arguments: Exported) -> None:
    run = open_run(arguments.run)
    if arguments.sigma_rel is not None and arguments.raw:
        raise ValueError("raw and sigma_rel exclude each other")
    if arguments.sigma_rel is not None:
        params, step = profile(run, arguments.sigma_rel, arguments.step)
        what = f"average of relative width {arguments.sigma_rel:g}"
    else:
        step = arguments.step if arguments.step is not None else run.steps[-1] if run.steps else None
        if step not in run.steps:
            raise ValueError(f"{arguments.run} has no checkpoint of step {step}; it has {run.steps or 'none'}")
        with Checkpoints(run.directory / "checkpoints") as checkpoints:
            state = checkpoints.restore(step, run.trainer.abstract)
        params = state.params if arguments.raw else state.ema
        what = "parameters" if arguments.raw else "averaged parameters"
    tensors = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    save_tensors(arguments.out, tensors, "parameters")
    shutil.copy(run.directory / "config.json", arguments.out / "config.json")
    figures = {"out": str(arguments.out), "step": step, "tensors": len(tensors)}
    show(arguments, figures, f"{arguments.out}: {len(tensors)} tensors, {what} of step {step}")


VERBS: Verbs = {
    "list": (Looked, _list, "the checkpoints of a run"),
    "verify": (
        Looked,
        _verify,
        "read every checkpoint and compare it with what was saved; exit status 1 if one is not whole",
    ),
    "export": (Exported, _export, "write a checkpoint's parameters as safetensors"),
}


def main(words: list[str]) -> None:
    act, arguments = chosen("jdiff checkpoint", VERBS, words)
    act(arguments)
