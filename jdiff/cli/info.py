"""`jdiff info RUN`: config, parameters and how they lie on the mesh, FLOPs a step, devices and checkpoints."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jdiff.cli.arguments import parse
from jdiff.config import to_dict
from jdiff.parallel import Row, summary
from jdiff.train.restore import open_run
from jdiff.train.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """What `jdiff info` takes."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run directory."""
    layout: bool = False
    """Print how each array of the parameters lies on the mesh, and why."""
    json: bool = False
    """Print as JSON."""


def parameters_by_module(trainer: Trainer) -> dict[str, int]:
    """Number of parameters of each part at the top of the network."""
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in trainer.abstract.params.items()}


def flops_a_step(trainer: Trainer) -> float:
    """Floating-point operations of one update as XLA counts them before it optimizes; nothing is compiled or run."""
    cost = jax.jit(trainer.update()).lower(trainer.abstract, trainer.abstract_batch).cost_analysis()
    return float(cost["flops"]) if cost else float("nan")


def table(rows: list[Row]) -> str:
    """A line for each array: path, shape, axes of the mesh by axis of the array, and why it is copied where it is."""
    cells = [
        (row.path, str(row.shape), ", ".join(map(str, row.spec)) or "copied", "; ".join(row.copied)) for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def main(words: list[str]) -> None:
    arguments = parse(Info, words, prog="jdiff info", description=__doc__ or "")
    run = open_run(arguments.run)
    trainer = run.trainer
    if arguments.layout and not arguments.json:
        print(table(trainer.layout()))
        return
    modules = parameters_by_module(trainer)
    figures = {
        "config": to_dict(trainer.experiment),
        "parameters": sum(modules.values()),
        "parameters_by_module": modules,
        "layout": [{**row._asdict(), "spec": list(row.spec)} for row in trainer.layout()],
        "flops_a_step": flops_a_step(trainer),
        "manifest": run.manifest,
        "devices_here": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "checkpoints": run.steps,
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"run          {arguments.run}")
    print(f"checkpoints  {', '.join(map(str, run.steps)) or 'none'} of {trainer.experiment.steps} steps")
    print(f"data         {run.manifest['data']['rows']} training images, {trainer.num_classes} classes")
    then = run.manifest["devices"]
    print(f"devices      {figures['devices_here']} here; started on {then['count']} x {then['kind']}")
    print(f"FLOPs        {figures['flops_a_step']:.3e} a step of {trainer.experiment.batch_size} images")
    print(f"parameters   {figures['parameters']:,}")
    print(f"layout       {summary(trainer.layout())}")
    for name, count in modules.items():
        print(f"             {count:10,}  {name}")
    print("config")
    print(json.dumps(figures["config"], indent=2))
