"""Batch sizes, rematerializations and meshes of a run on a topology, tried without compiling, and the best compiled."""

import dataclasses
import itertools
import math
import time
from pathlib import Path
from typing import NamedTuple

from jdiff.experiment import Experiment
from jdiff.parallel import AXES, BATCH, Mesh
from jdiff.plan import analytic
from jdiff.plan.mesh import described
from jdiff.plan.report import Economy, Plan, assembled, make
from jdiff.plan.topology import Topology
from jdiff.train.trainer import Trainer

# Not offload_dots: predictions know nothing of the way to the host.
REMATS = ("none", "dots", "dots_with_no_batch_dims", "full")


class Found(NamedTuple):
    """A plan, and what it is of."""

    plan: Plan
    experiment: Experiment


def candidates(experiment: Experiment, topology: Topology) -> list[Experiment]:
    """The experiment with batches of 1 to 64 examples a device and its own, every rematerialization, and every `data`
    and `fsdp` that are powers of two, beside the other axes of its mesh."""
    sizes = sorted({experiment.batch_size, *(topology.size * 2**power for power in range(7))})
    others = math.prod(getattr(experiment.mesh, axis) for axis in AXES if axis not in BATCH)
    slices = topology.size // others
    counts = [2**power for power in range(slices.bit_length()) if slices % 2**power == 0]
    found = []
    for size, remat, fsdp in itertools.product(sizes, REMATS, counts):
        mesh = dataclasses.replace(experiment.mesh, data=slices // fsdp, fsdp=fsdp)
        if size % slices == 0 and hasattr(experiment.network, "compute"):
            changed = dataclasses.replace(experiment, batch_size=size, mesh=mesh)
            found.append(analytic.with_remat(changed, remat))
    return found


def estimated(experiments: list[Experiment], topology: Topology, *, classes: int, economy: Economy) -> list[Found]:
    """Their plans without compiling; those whose mesh the topology does not carry are left out. Raises ValueError,
    with what the last one lacks, where that is all of them."""
    trainers: dict[Mesh, Trainer | None] = {}
    found, lacking = [], None
    for experiment in experiments:
        if experiment.mesh not in trainers:
            try:
                trainers[experiment.mesh], _ = described(experiment, topology, classes)
            except ValueError as error:
                trainers[experiment.mesh], lacking = None, error
        trainer = trainers[experiment.mesh]
        if trainer is None:
            continue
        # Batch and rematerialization change nothing of the state.
        trainer = dataclasses.replace(trainer, experiment=experiment)
        plan = assembled(trainer, topology, economy, None, "only the first are compiled", time.perf_counter())
        found.append(Found(plan, experiment))
    if lacking is not None and not found:
        raise lacking
    return found


def search(
    experiment: Experiment, topology: Topology, *, classes: int, economy: Economy, cache: Path, compiled: int = 3
) -> list[Plan]:
    """Plans of all candidates, those that fit first, by predicted images a second; the first `compiled` are compiled,
    where there is a compiler."""
    pairs = estimated(candidates(experiment, topology), topology, classes=classes, economy=economy)
    pairs.sort(key=lambda pair: rank(pair.plan))
    first = [one for plan, one in pairs[:compiled] if plan.fits]
    best = [make(one, topology, classes=classes, economy=economy, cache=cache) for one in first]
    return sorted(best, key=rank) + [plan for plan, _ in pairs[len(best) :]]


def rank(plan: Plan) -> tuple[bool, float]:
    """Those that fit first, then the fastest."""
    return not plan.fits, -plan.prediction.images if plan.prediction else 0.0


def table(plans: list[Plan]) -> list[str]:
    """A line a plan."""
    said = ["batch  remat                    mesh               verdict       needs GiB  predicted images/s  MFU"]
    for plan in plans:
        mesh = ",".join(f"{name}={count}" for name, count in plan.mesh.items() if count > 1)
        verdict = ("fits" if plan.fits else "too large") + ("" if plan.compiled else " (est.)")
        rate, mfu = (plan.prediction.images, plan.prediction.mfu) if plan.prediction else (float("nan"),) * 2
        sizes = f"{verdict:16} {plan.needed / 2**30:6.1f}  {rate:18,.0f}  {mfu:.1%}"
        said.append(f"{plan.batch:<6} {plan.remat:24} {mesh:18} {sizes}")
    return said


def too_large(plan: Plan, experiment: Experiment, *, classes: int, economy: Economy) -> str:
    """One line: by how much, and the three cheapest ways to make it fit, in predicted images a second that are left."""
    others = estimated(candidates(experiment, plan.topology), plan.topology, classes=classes, economy=economy)
    same = [other for other, _ in others if other.fits and other.batch <= plan.batch]
    ways = []
    for other in sorted(same, key=lambda other: (_changes(plan, other), rank(other))):
        words = _words(plan, other)
        if words and all(words != before for before in ways):
            ways.append(words)
    over = (plan.needed - plan.available) / 2**30
    least = "; ".join(ways[:3]) or "nothing that was tried makes it fit: take more chips, or larger ones"
    return f"the step does not fit {plan.topology}: {over:.1f} GiB too much a device. Cheapest ways: {least}"


def _changes(plan: Plan, other: Plan) -> int:
    return (plan.remat != other.remat) + (plan.mesh != other.mesh) + (plan.batch != other.batch)


def _words(plan: Plan, other: Plan) -> str:
    said = []
    if other.remat != plan.remat:
        said.append(f"--network.compute.remat {other.remat}")
    if other.mesh != plan.mesh:
        said.append("--mesh " + ",".join(f"{name}={count}" for name, count in other.mesh.items()))
    if other.batch != plan.batch:
        said.append(f"--batch-size {other.batch}")
    return " ".join(said)
