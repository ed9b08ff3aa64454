"""`jdiff plan RECIPE --topology v5p:8x8x8`: compiles a run's step for hardware that is not there, and predicts it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from jdiff.cli.arguments import choose, parse, show
from jdiff.experiment import Experiment, load_recipe
from jdiff.plan import search
from jdiff.plan.compiled import default_cache
from jdiff.plan.mesh import parse as on_mesh
from jdiff.plan.report import Economy, drawing, figures, lines, make
from jdiff.plan.topology import parse as topology_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanArguments:
    """What `jdiff plan` takes after the recipe."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    topology: str
    """The hardware: v5e:16x16, v5p:8x8x8, v6e:16x16, tpu7x:4x4x8, h100:16x8 (hosts and GPUs in each), ..."""
    slices: int = 1
    """How many of that, joined by the slower network of the data centre."""
    axes: Annotated[str, tyro.conf.arg(name="mesh")] = ""
    """The mesh, such as data=64,fsdp=8; the recipe's where it is not given."""
    classes: int = 0
    """Of the data, which is not opened."""
    images: float = 1e8
    """Of the run, for its time, cost and energy."""
    dollars: float | None = None
    """A chip and hour; the list price of the chip where it is not given."""
    watts: float | None = None
    """A chip at work; what the maker publishes where it is not given."""
    pue: float = 1.1
    """Power of the data centre over that of its computers."""
    grams: float | None = None
    """CO2 of a kilowatt hour there."""
    sampler: bool = False
    """Plan drawing `batch_size` images at once, as the recipe samples, not training."""
    search: bool = False
    """Try batch sizes, rematerializations and meshes, and rank those that fit by predicted images a second."""
    cache: Path = dataclasses.field(default_factory=default_cache)
    """Where what the compiler said is kept."""
    json: bool = False
    """Print as JSON."""


def main(words: list[str]) -> None:
    if not words or words[0].startswith("-"):
        print("usage: jdiff plan RECIPE.py --topology CHIP:AxBxC [--slices N] [--mesh data=64,fsdp=8] [--search]\n")
        print("`jdiff plan RECIPE.py --help` lists every field with the recipe's value.")
        sys.exit(0 if words and words[0] in ("-h", "--help") else 2)
    recipe = Path(words[0])
    experiment, rest = choose(load_recipe(recipe), words[1:])
    default = PlanArguments(experiment=experiment, topology=tyro.MISSING)
    about = f"Compiles the step of {recipe} for hardware that is not there. What it says of time is a prediction."
    given = parse(PlanArguments, rest, default=default, prog=f"jdiff plan {recipe}", description=about)
    topology = topology_of(given.topology, given.slices)
    experiment = on_mesh(given.axes, given.experiment) if given.axes else given.experiment
    economy = Economy(images=given.images, dollars=given.dollars, watts=given.watts, pue=given.pue, grams=given.grams)
    if given.search and given.sampler:
        raise ValueError("--search tries steps of training; it does not go with --sampler")
    if given.search:
        ranked = search.search(experiment, topology, classes=given.classes, economy=economy, cache=given.cache)
        show(given, [figures(plan) for plan in ranked], *search.table(ranked))
        return
    planned = drawing if given.sampler else make
    plan = planned(experiment, topology, classes=given.classes, economy=economy, cache=given.cache)
    if not given.json:
        print("\n".join(lines(plan)))
    else:
        print(json.dumps(figures(plan)))
    if not plan.fits and given.sampler:
        over = (plan.needed - plan.available) / 2**30
        raise ValueError(f"drawing {plan.batch} at once does not fit {topology}: {over:.1f} GiB too much a device")
    if not plan.fits:
        raise ValueError(search.too_large(plan, experiment, classes=given.classes, economy=economy))
