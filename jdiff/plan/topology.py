"""Devices that are described and not there, for the compiler to compile for.

The description of TPUs comes from libtpu, whose part that compiles runs without one. Three environment variables keep
it from looking for a TPU: they are set here, in this process alone. That of GPUs is in `gpus.py`.
"""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from jdiff.plan import gpus
from jdiff.plan.chips import CHIPS, Chip

_WITHOUT_TPU = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}


class NoCompilerError(ValueError):
    """There is no compiler for this hardware here."""


@dataclass(frozen=True)
class Topology:
    """Chips, how they are wired, and how many such slices a slower network joins."""

    chip: Chip
    shape: tuple[int, ...]
    """Of a torus of TPUs; of GPUs, hosts and GPUs in each."""
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def size(self) -> int:
        """Devices as JAX counts them."""
        return self.chips * self.chip.cores

    def __str__(self) -> str:
        name = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{self.slices} slices of {name}"


def parse(text: str, slices: int = 1) -> Topology:
    """Of "v5p:8x8x8": the chip, and how many of it each way; of "h100:16x8", 16 hosts with 8 in each. Raises ValueError
    for what is not one."""
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    if found is None or found[1] not in CHIPS:
        raise ValueError(f"topology: {text!r} is not CHIP:AxB or CHIP:AxBxC, with CHIP one of {', '.join(CHIPS)}")
    chip, shape = CHIPS[found[1]], tuple(map(int, found[2].split("x")))
    axes = {6: 3, 4: 2, 1: 2}[chip.links]
    if len(shape) != axes:
        example = "2x8, hosts and GPUs in each" if chip.platform == "cuda" else "x".join(["4"] * axes)
        raise ValueError(f"topology: {text}: {chip.name} has {axes} axes, such as {example}")
    if chip.platform == "cuda" and slices > 1:
        raise ValueError(f"topology: {slices} slices of {text}: hosts of GPUs are told as {found[1]}:HOSTSxGPUS")
    if slices < 1 or min(shape) < 1:
        raise ValueError(f"topology: {slices} slices of {text} hold no chip")
    return Topology(chip, shape, slices)


def devices(topology: Topology) -> list[Any]:
    """The devices of a topology, described, those of a slice side by side. Raises NoCompilerError where what compiles
    for them is not installed, and ValueError where there is no such topology."""
    if topology.chip.platform == "cuda":
        if not gpus.installed():
            raise NoCompilerError("the compiler for GPUs is not installed: pip install 'jdiff[cuda]'")
        jax.config.update("jax_platforms", "cpu")  # a GPU that is here is not for planning
        return gpus.devices(topology.chip, *topology.shape)
    if importlib.util.find_spec("libtpu") is None:
        raise NoCompilerError("the compiler for TPUs is not installed: pip install 'jdiff[tpu]'")
    for name, value in _WITHOUT_TPU.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # a TPU that is here is not for planning
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.configuration is not None:
        more["chip_config_name"] = topology.chip.configuration
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology: there is no {topology}: {' '.join(str(error).split())}") from error
    if len(found) != topology.size:
        raise ValueError(f"topology: {topology} has {len(found)} devices, {topology.size} were expected")
    return sorted(found, key=lambda device: getattr(device, "slice_index", 0) or 0)
