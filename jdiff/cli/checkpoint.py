"""`jdiff checkpoint VERB RUN`: what a run has saved, whether it is whole, and its weights as safetensors."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jdiff.atomic_files import write_atomically
from jdiff.cli.arguments import Verbs, chosen, show
from jdiff.interop.tensors import save_tensors
from jdiff.locks import locked
from jdiff.train.checkpoint import Checkpoints, DamagedError
from jdiff.train.restore import Run, open_run
from jdiff.train.snapshots import profile
from jdiff.typing import Params

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
    if arguments.out.exists() and arguments.out.resolve() == arguments.run.resolve():
        raise ValueError(f"{arguments.out} is the run itself; give another --out")
    with locked(arguments.out, what="exporting"):
        run = open_run(arguments.run)
        params, step, what = _chosen(arguments, run)
        names = lambda path: "/".join(key.key for key in path)
        tensors = {names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        save_tensors(arguments.out, tensors, "parameters")
        write_atomically(arguments.out / "config.json", (run.directory / "config.json").read_text())
    figures = {"out": str(arguments.out), "step": step, "tensors": len(tensors)}
    show(arguments, figures, f"{arguments.out}: {len(tensors)} tensors, {what} of step {step}")


def _chosen(arguments: Exported, run: Run) -> tuple[Params, int, str]:
    """The parameters that are to be exported, their step, and what they are in words."""
    if arguments.sigma_rel is not None and arguments.raw:
        raise ValueError("raw and sigma_rel exclude each other")
    if arguments.sigma_rel is not None:
        return *profile(run, arguments.sigma_rel, arguments.step), f"average of relative width {arguments.sigma_rel:g}"
    if arguments.step is None:
        state = run.state()
    elif arguments.step not in run.steps:
        raise ValueError(f"{arguments.run} has no checkpoint of step {arguments.step}; it has {run.steps or 'none'}")
    else:
        with Checkpoints(run.directory / "checkpoints") as checkpoints:
            state = checkpoints.restore(arguments.step, run.trainer.abstract)
    params, what = (state.params, "parameters") if arguments.raw else (state.ema, "averaged parameters")
    return params, int(state.step), what


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
