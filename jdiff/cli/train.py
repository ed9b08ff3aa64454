"""`jdiff train RECIPE`: trains the recipe's experiment; the same command again goes on from the last checkpoint."""

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jdiff.cli.arguments import choose, parse
from jdiff.config import choices
from jdiff.experiment import Experiment, load_recipe
from jdiff.parallel import join, own_output
from jdiff.train import run
from jdiff.train.loop import train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """What `jdiff train` takes after the recipe."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    out: Path | None = None
    """The run directory; runs/NAME-HASH of the config by default."""
    json: bool = False
    """End with one line of JSON instead of words."""


def main(words: list[str]) -> None:
    with own_output():
        join()
    if not words or words[0].startswith("-"):
        print("usage: jdiff train RECIPE.py [--FIELD VALUE ...] [--out DIRECTORY]\n")
        print("`jdiff train RECIPE.py --help` lists every field with the recipe's value.")
        sys.exit(0 if words and words[0] in ("-h", "--help") else 2)
    recipe = Path(words[0])
    experiment, rest = choose(load_recipe(recipe), words[1:])
    fields = (f.name for f in dataclasses.fields(Experiment))
    classes = "; ".join(f"--{name} {'|'.join(options)}" for name in fields if (options := choices(Experiment, name)))
    arguments = parse(
        Train,
        rest,
        default=Train(experiment=experiment),
        prog=f"jdiff train {recipe}",
        description=f"Trains the experiment of {recipe}, or goes on with its run. Another class of a part, with its "
        f"defaults: {classes}.",
    )
    directory = arguments.out or run.default_directory(arguments.experiment)
    first = jax.process_index() == 0
    if first and not arguments.json:
        print(f"run directory: {directory}", flush=True)
    command = shlex.join(["jdiff", "train", *words, *([] if arguments.out else ["--out", str(directory)])])
    try:
        with own_output():
            state = train(arguments.experiment, directory)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop or 'interrupted'}; to go on: {command}") from stop
    if not first:
        return
    if arguments.json:
        last = run.read_lines(directory / "metrics.jsonl")[-1:] or [{"step": int(state.step)}]
        print(json.dumps({"directory": str(directory), "samples": str(directory / "samples.png"), **last[0]}))
        return
    if int(state.step) < arguments.experiment.steps:
        print(f"stopped after step {int(state.step)} of {arguments.experiment.steps}; to go on: {command}")
        return
    print(f"step {int(state.step)}; pictures: {directory / 'samples.png'}, trajectory.png and nearest.png beside it")
    if credit := arguments.experiment.data.credit:
        print(credit)
