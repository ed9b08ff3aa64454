"""`jdiff checkpoint VERB RUN`: what a run has saved, whether it is whole, and its weights as safetensors."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jdiff.cli.arguments import parse
from jdiff.interop.tensors import save_tensors
from jdiff.train.checkpoint import Checkpoints, DamagedError
from jdiff.train.restore import open_run


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
    json: bool = False
    """Print as JSON."""


def _list(arguments: Looked) -> None:
    run = open_run(arguments.run)
    rows = []
    for step in run.steps:
        folder = arguments.run / "checkpoints" / str(step)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        rows.append({"step": step, "bytes": size, **_about(run.directory, step)})
    lines = [
        f"step {row['step']:>8}  {row['bytes'] / 1e6:8.1f} MB  "
        + (row["damage"] if "damage" in row else f"schema {row['schema']}  digest {row['digest']:08x}")
        for row in rows
    ]
    _show(arguments, rows, lines or [f"{arguments.run} has no checkpoint yet"])


def _about(directory: Path, step: int) -> dict[str, Any]:
    with Checkpoints(directory / "checkpoints") as checkpoints:
        try:
            return checkpoints.about(step)
        except DamagedError as error:
            return {"damage": str(error)}


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
    _show(arguments, rows, lines or [f"{arguments.run} has no checkpoint yet"])
    if not all(row["whole"] for row in rows):
        sys.exit(1)


def _export(arguments: Exported) -> None:
    run = open_run(arguments.run)
    step = arguments.step if arguments.step is not None else run.steps[-1] if run.steps else None
    if step not in run.steps:
        raise ValueError(f"{arguments.run} has no checkpoint of step {step}; it has {run.steps or 'none'}")
    with Checkpoints(run.directory / "checkpoints") as checkpoints:
        state = checkpoints.restore(step, run.trainer.abstract)
    params = state.params if arguments.raw else state.ema
    tensors = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    save_tensors(arguments.out, tensors, "parameters")
    shutil.copy(run.directory / "config.json", arguments.out / "config.json")
    figures = {"out": str(arguments.out), "step": step, "tensors": len(tensors)}
    what = "parameters" if arguments.raw else "averaged parameters"
    _show(arguments, figures, [f"{arguments.out}: {len(tensors)} tensors, {what} of step {step}"])


def _show(arguments: Any, figures: Any, lines: list[str]) -> None:
    print(json.dumps(figures) if arguments.json else "\n".join(lines))


VERBS: dict[str, tuple[Any, Any, str]] = {
    "list": (Looked, _list, "the checkpoints of a run"),
    "verify": (
        Looked,
        _verify,
        "read every checkpoint and compare it with what was saved; exit status 1 if one is not whole",
    ),
    "export": (Exported, _export, "write a checkpoint's parameters as safetensors"),
}


def main(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print("usage: jdiff checkpoint VERB RUN\n\n" + "\n".join(f"  {name:7} {row[2]}" for name, row in VERBS.items()))
        print("\n`jdiff checkpoint VERB --help` tells the rest.")
        sys.exit(0 if words else 2)
    if words[0] not in VERBS:
        raise ValueError(f"there is no verb {words[0]!r} of jdiff checkpoint; there are {', '.join(VERBS)}")
    cls, act, text = VERBS[words[0]]
    act(parse(cls, words[1:], prog=f"jdiff checkpoint {words[0]}", description=f"{text[0].upper()}{text[1:]}."))
