"""A trainer on devices that are described: the one that `jdiff train` would have there."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from jdiff.experiment import Experiment
from jdiff.parallel import AXES, Mesh
from jdiff.plan.topology import NoCompilerError, Topology, devices
from jdiff.train.trainer import Trainer, assemble


def parse(text: str, experiment: Experiment) -> Experiment:
    """The experiment on the mesh "data=64,fsdp=8". Raises ValueError for an axis that meshes do not have."""
    axes: dict[str, int] = {}
    for word in text.split(","):
        name, _, count = word.partition("=")
        if name not in AXES or not count.isdigit() or name in axes:
            raise ValueError(f"mesh: {word!r} of {text!r} is not AXIS=NUMBER, with AXIS one of {', '.join(AXES)}")
        axes[name] = int(count)
    return dataclasses.replace(experiment, mesh=dataclasses.replace(Mesh(), **axes))


def check(experiment: Experiment, topology: Topology) -> None:
    """Raises ValueError where the mesh does not multiply to the topology's devices, or the batch does not divide."""
    axes = {name: size for name in AXES if (size := getattr(experiment.mesh, name)) not in (None, 1)}
    product = math.prod(axes.values())
    if (experiment.mesh.data is None and topology.size % product) or (
        experiment.mesh.data is not None and product != topology.size
    ):
        words = " x ".join(f"{name}={count}" for name, count in axes.items())
        raise ValueError(f"mesh: {words} is {product}, and {topology} has {topology.size} devices")


def described(experiment: Experiment, topology: Topology, classes: int) -> tuple[Trainer, str]:
    """The trainer on the topology, and why it cannot be compiled there, where it cannot: its devices are then names
    without a compiler behind them. Raises ValueError where mesh, batch, network and topology do not fit together."""
    check(experiment, topology)
    try:
        found, missing = devices(topology), ""
    except NoCompilerError as error:
        found, missing = _names(topology), str(error)
    try:
        return assemble(experiment, classes, found), missing
    except NotImplementedError as error:
        raise ValueError(
            f"mesh: {dataclasses.asdict(experiment.mesh)} does not lie on {topology}: the size of each axis of a mesh "
            "must be a product of whole axes of the topology"
        ) from error


@dataclass(frozen=True)
class _Named:
    """A device that only has a place."""

    id: int
    device_kind: str
    platform: str
    process_index: int = 0
    num_cores: int | None = None


def _names(topology: Topology) -> list[Any]:
    chip = topology.chip
    return [_Named(number, chip.name, "gpu" if chip.platform == "cuda" else "cpu") for number in range(topology.size)]
