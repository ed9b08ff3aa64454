"""Scheduler configs of every class, changed at random: refused in one line, or finite factors over any number of steps.

Values are those that classes allow, odd ones and those of other fields; files are spoiled bytes of such a config.
"""

import collections
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jdiff.interop.schedulers import read_schedule
from jdiff.interop.schedulers.classes import CHOICES, DEFAULTS, RENAMED
from tests.fuzz.mutations import mutated, spoiled

HANG_SECONDS = 30
NUMBERS = (0, 1, 2, 3, 0.5, 0.9, 1e-9, 1e-3, 7.0, 999, 1000, 100_000, -1, 1e30, 1e308)
STEPS = (1, 2, 3, 4, 5, 14, 15, 16, 50, 61, 1000)


def drawn(rng: random.Random) -> dict[str, Any]:
    """A config of a class: some of its fields, with values that it allows or another field has."""
    kind = rng.choice(sorted(DEFAULTS))
    fields, choices = DEFAULTS[kind], CHOICES.get(kind, {})
    named = [name for name in RENAMED if RENAMED[name] == kind]
    config: dict[str, Any] = {"_class_name": rng.choice([kind, kind, *named])}
    for name in rng.sample(sorted(fields), rng.randrange(min(8, len(fields)) + 1)):
        values: list[Any] = [fields[name], *choices.get(name, ())]
        if isinstance(fields[name], bool):
            values += [True, False]
        elif isinstance(fields[name], int | float) or fields[name] is None:
            values += NUMBERS
        config[name] = rng.choice(values)
    return config


def _read(path: Path, rng: random.Random) -> str:
    try:
        schedule = read_schedule(path, pipeline=rng.choice((None, "StableDiffusionPipeline")))
    except (ValueError, OSError) as error:
        assert str(path) in str(error), f"{error!r} does not name its file"
        return "refused"
    steps, outcome = rng.choice(STEPS), "steps refused"
    try:
        table = schedule.table(steps, rng.choice((1, 256, 4096, 100_000)))
    except ValueError as error:
        assert str(error).strip()
    else:
        grid = np.asarray(table.grid)
        assert (np.diff(grid) < 0).all() and all(np.isfinite(np.asarray(part)).all() for part in table.solver.rows)
        outcome = "drawn"
    return outcome


def run(seconds: float, seed: int) -> dict[str, int]:
    """Counts by outcome. Raises AssertionError, with the seed and the case, for a fault."""
    counts: collections.Counter[str] = collections.Counter()
    end, number = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scheduler_config.json"
        while time.monotonic() < end:
            rng = random.Random(f"{seed}/{number}")
            config = drawn(rng)
            text = json.dumps(mutated(config, rng) if rng.random() < 0.4 else config).encode()
            path.write_bytes(spoiled(text, rng) if rng.random() < 0.2 else text)
            case, start = f"seed {seed}, case {number}: {path.read_bytes()[:600]!r}", time.monotonic()
            try:
                with np.errstate(all="ignore"):
                    counts[_read(path, rng)] += 1
            except Exception as error:
                raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
            assert time.monotonic() - start < HANG_SECONDS, f"{case}: took {time.monotonic() - start:.0f} s"
            number += 1
    return dict(counts)
