"""The small JSON files of a run, changed at random: they are read, or refused in one line of the right kind.

config.json, manifest.json, metrics.jsonl, throughput.jsonl and fault.json, by what reads each. What is accepted of a
config must come back the same, and fit together or be refused.
"""

import collections
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jdiff.experiment import to_json
from jdiff.train import goodput
from jdiff.train import run as runs
from jdiff.train.identity import differences
from jdiff.train.trainer import assemble
from tests.fuzz.mutations import encoded, mutated, spoiled
from tests.recipe import experiment

HANG_SECONDS = 60
_BUILT_EVERY = 10
MANIFEST = {
    "data": {"fingerprint": "0" * 64, "rows": 135, "classes": ["a", "b"]},
    "seed": 0,
    "devices": {"kind": "cpu", "count": 1, "hosts": 1},
}
SECONDS = dict.fromkeys(goodput.BUCKETS[:-1], 1.0)
LINES = "".join(
    json.dumps({"step": step, "loss": 1.0, "process": 1.5, "from": 0, "seconds": SECONDS}) + "\n"
    for step in range(2, 20, 2)
)


def refusal(act: Callable[[], Any], case: str) -> tuple[str, Any]:
    """What `act` gives, as "accepted", or that it is "refused" in words; anything else is a fault of the case."""
    start = time.monotonic()
    try:
        outcome = "accepted", act()
    except (ValueError, OSError) as error:
        assert str(error).strip(), f"{case}: {type(error).__name__} without a word"
        outcome = "refused", None
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    assert time.monotonic() - start < HANG_SECONDS, f"{case}: took {time.monotonic() - start:.0f} s"
    return outcome


def _config(folder: Path, built: bool) -> str:
    read = runs.read_experiment(folder)
    differences(experiment, read, 4)
    (folder / "config.json").write_text(to_json(read))
    assert runs.read_experiment(folder) == read, "another config after it was written"
    if built:
        assemble(read, 3)
    return "assembled" if built else "config"


FILES: dict[str, tuple[Any, str]] = {
    "config.json": (json.loads(to_json(experiment)), to_json(experiment)),
    "manifest.json": (MANIFEST, json.dumps(MANIFEST)),
    "lines.jsonl": (None, LINES),
}


def run_case(folder: Path, rng: random.Random, built: bool) -> str:
    """One change of one file, and what came of it."""
    name = rng.choice(list(FILES))
    value, text = FILES[name]
    data = spoiled(text.encode(), rng) if value is None or rng.random() < 0.4 else encoded(mutated(value, rng))
    (folder / name).write_bytes(data)
    readers: dict[str, Callable[[], Any]] = {
        "config.json": lambda: _config(folder, built),
        "manifest.json": lambda: runs.read_manifest(folder),
        "lines.jsonl": lambda: _lines(folder / name),
    }
    return f"{name} {refusal(readers[name], f'{name} of {data[:3000]!r}')[0]}"


def _lines(path: Path) -> None:
    runs.read_lines(path)
    goodput.told(goodput.spent(path))
    runs.cut(path, 12)
    steps = [record["step"] for record in runs.read_lines(path)]
    assert steps == sorted(set(steps)) and all(step <= 12 for step in steps), f"steps {steps} are left"


def run(seconds: float, seed: int) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    end, number = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as place:
        while time.monotonic() < end:
            rng = random.Random(f"{seed} {number}")
            try:
                counts[run_case(Path(place), rng, number % _BUILT_EVERY == 0)] += 1
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, case {number}: {error}") from error
            number += 1
    return dict(counts)
