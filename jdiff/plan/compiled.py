"""What `jdiff train` and `jdiff sample` run, compiled for devices that are not there, and what the compiler says of it.

Kept by the hash of what was compiled: the program before XLA, the devices, and the versions of JAX and its compilers.
"""

import hashlib
import importlib.metadata
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from jdiff.atomic_files import write_atomically
from jdiff.plan import gpus, hlo, statistics
from jdiff.plan.topology import Topology
from jdiff.train.trainer import Trainer


@dataclass(frozen=True)
class Compiled:
    """What the compiler said of one device's program. Bytes and FLOPs of one device and one run of it."""

    arguments: int
    temporaries: int
    peak: int
    """What a device must hold at once: less than arguments and temporaries, which are not all alive together. Where it
    does not fit, what the compiler would have needed."""
    fits: bool
    available: int | None
    """Bytes that the compiler has for a program, where it said so."""
    flops: float
    cycles: float
    product_cycles: float
    moved: float
    kernel_flops: float
    kernel_moved: float
    """`statistics.Statistics` says what these are."""
    beside: list[tuple[float, float]]
    """Of each collective that computing is laid beside, bytes that a device sends and cycles of that computing."""
    sent: dict[str, float]
    """Bytes that a device sends, by kind of collective."""
    between: float
    """Of these, bytes that go between slices, or between hosts of GPUs."""
    opaque: dict[str, int]


def default_cache() -> Path:
    """Where compiled figures are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jdiff" / "plans"


def compiled_step(trainer: Trainer, topology: Topology, cache: Path) -> Compiled:
    """`compiled`, of the trainer's step."""
    return compiled(trainer.step().lower(trainer.abstract, trainer.abstract_batch), topology, cache)


def compiled(lowered: jax.stages.Lowered, topology: Topology, cache: Path) -> Compiled:
    """Compiles a program, or reads what was said when it was. Raises ValueError for what the compiler refuses for
    another reason than memory."""
    versions = sorted(f"{one.name} {one.version}" for one in importlib.metadata.distributions() if _compiles(one.name))
    sources = [Path(name).read_text() for name in (hlo.__file__, statistics.__file__, __file__)]
    words = "\n".join([str(topology), *versions, *sources, lowered.as_text()])
    path = cache / f"{hashlib.sha256(words.encode()).hexdigest()[:24]}.json"
    if path.exists():
        return Compiled(**json.loads(path.read_text()))
    options: Any = gpus.OPTIONS if topology.chip.platform == "cuda" else None
    try:
        result = _measured(lowered.compile(options), topology)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise ValueError(f"the compiler refuses this program: {' '.join(str(error).split())[:400]}") from error
        result = _too_large(str(error))
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(result)))
    return result


def _compiles(distribution: str) -> bool:
    return distribution in ("jax", "jaxlib", "libtpu") or distribution.startswith(("jax-cuda", "nvidia-cudnn"))


def _measured(program: jax.stages.Compiled, topology: Topology) -> Compiled:
    memory = program.memory_analysis()
    if memory is None:
        raise ValueError("the compiler does not say how much memory the program takes")
    figures = statistics.statistics(program.as_text() or "")
    whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    whole += memory.output_size_in_bytes - memory.alias_size_in_bytes
    gpu = topology.chip.platform == "cuda"  # whose compiler neither says what is alive at once nor refuses
    peak = whole if gpu else memory.peak_memory_in_bytes
    available = int(topology.chip.hbm * topology.chip.usable) if gpu else None
    between = figures.between(topology.shape[-1]) if gpu else figures.sent().get(statistics.BETWEEN, 0.0)
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=peak,
        fits=available is None or peak <= available,
        available=available,
        flops=figures.flops,
        cycles=figures.cycles,
        product_cycles=figures.product_cycles,
        moved=figures.moved,
        kernel_flops=figures.kernel_flops,
        kernel_moved=figures.kernel_moved,
        beside=[(one.sent, one.beside) for one in figures.collectives if one.beside],
        sent=figures.sent(),
        between=between,
        opaque=figures.opaque,
    )


def _too_large(message: str) -> Compiled:
    """Of the compiler's "... (55.44G) exceeds available HBM (15.75G)" and "Used 20.1G of 15.75G hbm"."""
    sizes = re.search(r"\(([\d.]+[KMG]?)\) exceeds available HBM \(([\d.]+[KMG]?)\)", message) or re.search(
        r"[Uu]sed ([\d.]+[KMG]?) of ([\d.]+[KMG]?) hbm", message
    )
    needed, available = (_bytes(size) for size in sizes.groups()) if sizes else (0, None)
    return Compiled(0, 0, needed or 0, False, available, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, [], {}, 0.0, {})


def _bytes(size: str) -> int:
    return int(float(size.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1], 1))
