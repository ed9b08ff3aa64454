"""The run directory: what was asked for, what it ran on, and what came out.

config.json        the experiment, all fields resolved
manifest.json      versions, devices, XLA flags, the data's fingerprint
metrics.jsonl      one line every `log_every` steps; no clock in it: the same run writes the same bytes
held_out.jsonl     the loss on held-out data at each checkpoint, where `keep.metric` asks for it
throughput.jsonl   images a second, by the clock
checkpoints/       `checkpoint.py`
samples/           pictures on the way; samples.png, trajectory.png and nearest.png at the end
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from jdiff.data import Source
from jdiff.experiment import Experiment, fingerprint, from_json, to_json

_PACKAGES = ("jdiff", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_atomically(path: Path, text: str) -> None:
    """The file holds all of `text`, or is as it was."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def default_directory(experiment: Experiment) -> Path:
    """runs/NAME-HASH, below the current directory."""
    return Path("runs") / f"{experiment.name}-{fingerprint(experiment)}"


def read_experiment(directory: Path) -> Experiment:
    """The experiment of a run. Raises ValueError if the directory holds none, or one that does not fit this version."""
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory} is not a run directory: it has no config.json")
    try:
        return from_json(path.read_text())
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _commit() -> str | None:
    """The code's git commit, "+" where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    ask = lambda *words: subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False)
    try:
        head = ask("rev-parse", "HEAD")
        dirty = ask("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None


def manifest(experiment: Experiment, source: Source) -> dict[str, Any]:
    """What the run depends on besides its config."""
    return {
        "data": {"fingerprint": source.fingerprint, "rows": len(source), "classes": list(source.class_names)},
        "seed": experiment.seed,
        "code": _commit(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "hosts": jax.process_count()},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def check_data(directory: Path, source: Source) -> None:
    """Raises ValueError unless the training data is what the run was started on."""
    before = json.loads((directory / "manifest.json").read_text())["data"]["fingerprint"]
    if before != source.fingerprint:
        raise ValueError(f"the data of {directory} has changed since it was started: {before} -> {source.fingerprint}")


def claim(directory: Path, experiment: Experiment, source: Source) -> bool:
    """Makes the directory this experiment's; True if it was already, on whatever mesh: that may change. Only the first
    process writes.

    Raises ValueError, and changes nothing, if it belongs to another experiment, if the data has changed since, or if it
    holds something that is no run.
    """
    if (directory / "config.json").exists():
        before = read_experiment(directory)
        if dataclasses.replace(before, mesh=experiment.mesh) != experiment:
            raise ValueError(f"{directory} holds a run of another config; give another --out, or remove it")
        check_data(directory, source)
        if before != experiment and jax.process_index() == 0:
            write_atomically(directory / "config.json", to_json(experiment))
        return True
    # The config is written last: a kill before that leaves only these.
    started = {"manifest.json", ".manifest.json.tmp", ".config.json.tmp"}
    if directory.exists() and (not directory.is_dir() or {path.name for path in directory.iterdir()} - started):
        raise ValueError(f"{directory} exists and is not a run directory; give another --out")
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "manifest.json", json.dumps(manifest(experiment, source), indent=2) + "\n")
        write_atomically(directory / "config.json", to_json(experiment))
    return False


def cut(path: Path, step: int) -> None:
    """Drops the lines of a JSON-lines file after `step`, and a line that a kill left half-written. The first process
    alone writes."""
    if jax.process_index() or not path.exists():
        return
    text = path.read_text()
    kept = [line for line in text.splitlines(keepends=True) if line.endswith("\n") and json.loads(line)["step"] <= step]
    if "".join(kept) != text:
        write_atomically(path, "".join(kept))


def append(path: Path, record: dict[str, Any]) -> None:
    """One more line, handed to the operating system before this returns. The first process alone writes."""
    if jax.process_index():
        return
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
