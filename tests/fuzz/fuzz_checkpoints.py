"""The files of a checkpoint, changed at random: the state that was saved is read, or the checkpoint is refused.

A bit flip in a small file, a file cut, emptied or doubled, JSON with other values, files exchanged: whatever is
accepted is, to the bit, what was saved under its step; the next checkpoint, which is whole, is always found.
"""

import collections
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.train.checkpoint import Checkpoints
from jdiff.typing import Array, Params
from tests.fuzz.mutations import encoded, mutated, spoiled

HANG_SECONDS = 60
STEPS = (10, 20)


class State(NamedTuple):
    """As small as a state can be."""

    step: Array
    params: Params


def state(step: int) -> State:
    """The state of a step."""
    values = jnp.arange(12, dtype=jnp.float32).reshape(3, 4) + step
    return State(jnp.int32(step), {"layer": {"kernel": values, "bias": values[0]}})


def saved(folder: Path) -> None:
    """Two whole checkpoints."""
    with Checkpoints(folder) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, state(step), "12345678")


def spoil(folder: Path, rng: random.Random) -> str:
    """One change of the newest checkpoint, in words."""
    newest = folder / str(STEPS[-1])
    path = rng.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    data, kind = path.read_bytes(), rng.random()
    name = path.relative_to(newest)
    if kind < 0.1:
        path.unlink()
        return f"{name} removed"
    if kind < 0.2:
        shutil.copy(folder / str(STEPS[0]) / name, path) if (folder / str(STEPS[0]) / name).exists() else None
        return f"{name} of another step"
    if kind < 0.5 and data.startswith(b"{"):
        path.write_bytes(encoded(mutated(json.loads(data), rng)))
    else:
        path.write_bytes(spoiled(data, rng))
    return f"{name} is {path.read_bytes()[:1000]!r}"


def check(folder: Path, case: str) -> str:
    """What becomes of it: "read", or "refused" and the checkpoint before it is read."""
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0))
    start, damages = time.monotonic(), []
    with Checkpoints(folder) as checkpoints:
        try:
            newest = checkpoints.newest(abstract, damages.append)
        except Exception as error:
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    assert newest is not None, f"{case}: no checkpoint is found"
    step, read = newest
    assert len(damages) == (step == STEPS[0]), f"{case}: step {step}, {damages}"
    for one, other in zip(jax.tree.leaves(read), jax.tree.leaves(state(step)), strict=True):
        assert np.array_equal(one, other), f"{case}: another state is taken for that of step {step}"
    assert time.monotonic() - start < HANG_SECONDS, f"{case}: took {time.monotonic() - start:.0f} s"
    return "refused" if damages else "read"


def run(seconds: float, seed: int) -> dict[str, int]:
    """Counts by outcome. Raises AssertionError with seed and case for what is neither read nor refused."""
    counts: collections.Counter[str] = collections.Counter()
    end, number = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as place:
        whole, folder = Path(place, "whole"), Path(place, "checkpoints")
        saved(whole)
        while time.monotonic() < end:
            shutil.copytree(whole, folder)
            case = spoil(folder, random.Random(f"{seed} {number}"))
            counts[check(folder, f"seed {seed}, case {number}: {case}")] += 1
            shutil.rmtree(folder)
            number += 1
    return dict(counts)
