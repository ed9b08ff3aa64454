"""The run directory: what was asked for, what it ran on, and what came out.

config.json        the experiment, all fields resolved, paths from the root
manifest.json      versions, devices, XLA flags, the data's fingerprint
metrics.jsonl      one line every `log_every` steps; no clock in it: the same run writes the same bytes. `replaced`
                   is how many rows of the first process since the last line could not be read, and why
held_out.jsonl     the loss on held-out data at each checkpoint, where `keep.metric` asks for it
throughput.jsonl   images a second, by the clock
checkpoints/       `checkpoint.py`
samples/           pictures on the way; samples.png, trajectory.png and nearest.png at the end

One process at a time writes there (`jdiff/locks.py`), or the processes of one run. JSON appears whole and is on the
disk before anything rests on it; of lines, a power loss may cost the last ones, and what it leaves of them is dropped
when the run goes on.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from jdiff.atomic_files import named, remove_unfinished, write_atomically
from jdiff.config import from_dict
from jdiff.data import Source
from jdiff.experiment import Experiment, fingerprint, to_json
from jdiff.json_files import parse_object, read_object
from jdiff.locks import NAME
from jdiff.train.description import steps_in
from jdiff.train.identity import differences
from jdiff.train.paths import absolute, located

_PACKAGES = ("jdiff", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def default_directory(experiment: Experiment) -> Path:
    """runs/NAME-HASH, below the current directory."""
    return Path("runs") / f"{experiment.name}-{fingerprint(experiment)}"


def read_experiment(directory: Path) -> Experiment:
    """The experiment of a run. Raises ValueError if the directory holds none, or one that does not fit this version."""
    path = directory / "config.json"
    if not os.path.lexists(path):
        raise ValueError(f"{directory} is not a run directory: it has no config.json")
    values = read_object(path)
    try:
        return located(from_dict(Experiment, values), directory)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_manifest(directory: Path) -> dict[str, Any]:
    """What a run depended on when it was started. Raises ValueError, naming the file and the field, where it does not
    say what `manifest` writes."""
    path = directory / "manifest.json"
    values = read_object(path)
    wanted: dict[str, dict[str, type]] = {
        "data": {"fingerprint": str, "rows": int, "classes": list},
        "devices": {"kind": str, "count": int},
    }
    for part, fields in wanted.items():
        if not isinstance(values.get(part), dict):
            raise ValueError(f"{path}: {part} must be an object, got {str(values.get(part))[:100]!r}")
        for name, kind in fields.items():
            value = values[part].get(name)
            if type(value) is not kind:
                raise ValueError(f"{path}: {part}.{name} must be {kind.__name__}, got {str(value)[:100]!r}")
    if not all(isinstance(name, str) for name in values["data"]["classes"]):
        raise ValueError(f"{path}: data.classes must be a list of text")
    return values


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
    """Raises ValueError unless the training data is what the run was started on, wherever it lies."""
    before = read_manifest(directory)["data"]["fingerprint"]
    if before != source.fingerprint:
        raise ValueError(f"the data of {directory} has changed since it was started: {before} -> {source.fingerprint}")


def check_config(directory: Path, experiment: Experiment) -> None:
    """Raises ValueError where the directory holds the run of another experiment, naming each field that differs, or
    something that is no run."""
    if os.path.lexists(directory / "config.json"):
        before = absolute(read_experiment(directory))
        steps = steps_in(directory / "checkpoints")
        if wrong := differences(before, experiment, steps[-1] if steps else 0):
            raise ValueError(
                f"{directory} holds a run of another config: {'; '.join(wrong)}; give another --out, or remove it"
            )
        return
    # The config is written last: a kill before that leaves only these.
    started = {"manifest.json", ".manifest.json.tmp", ".config.json.tmp", NAME}
    if directory.exists() and (not directory.is_dir() or {path.name for path in directory.iterdir()} - started):
        raise ValueError(f"{directory} exists and is not a run directory; give another --out")


def claim(directory: Path, experiment: Experiment, source: Source) -> bool:
    """Makes the directory this experiment's; True if it was already, but for what may change (`identity.py`). Only the
    first process writes.

    Raises ValueError as `check_config` does, and if the data has changed; then nothing has changed in the directory.
    """
    check_config(directory, experiment)
    first = jax.process_index() == 0
    if (directory / "config.json").exists():
        check_data(directory, source)
        if first:
            remove_unfinished(directory)
            if to_json(experiment) != (directory / "config.json").read_text():
                write_atomically(directory / "config.json", to_json(experiment))
        return True
    if first:
        write_atomically(directory / "manifest.json", json.dumps(manifest(experiment, source), indent=2) + "\n")
        write_atomically(directory / "config.json", to_json(experiment))
    return False


def cut(path: Path, step: int) -> int:
    """Drops the lines of a JSON-lines file after `step`, and what is no line of a run: a half that a kill left, the
    zeros of a power loss, and steps that are there twice. How many of the latter kind, but for the last line. The first
    process alone writes."""
    if jax.process_index() or not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept: list[bytes] = []
    last = odd = 0
    for number, line in enumerate(lines, 1):
        at = _step(line)
        if at is not None and last < at <= step:
            kept.append(line)
            last = at
        elif (at is None or at <= last) and number < len(lines):
            odd += 1
    if kept != lines:
        write_atomically(path, b"".join(kept).decode())
    return odd


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file that is being written; none where there is no file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [record for line in lines if (record := _record(line)) is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(line, "line") if line.endswith(b"\n") else None
    except ValueError:
        return None


def _step(line: bytes) -> int | None:
    """Of a whole line, the step."""
    step = (_record(line) or {}).get("step")
    return step if type(step) is int and step > 0 else None


def append(path: Path, record: dict[str, Any]) -> None:
    """One more line, handed to the operating system before this returns. The first process alone writes. Raises OSError
    naming the file."""
    if jax.process_index():
        return
    try:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise named(error, path) from error
