"""A run killed at random moments ends as the run that was left alone: to the bit, with no gap and no repeat."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jdiff.train.checkpoint import Checkpoints
from jdiff.train.restore import open_run
from jdiff.train.snapshots import folder
from tests import recipe

STEPS = 800
COMMAND = [
    sys.executable, "-c", "from jdiff.cli import main; main()",
    "train", recipe.__file__, "--steps", str(STEPS), "--checkpoint-every", "25", "--sample-every", "400",
    "--profiles", "0.05", "0.1", "--snapshot-every", "350",
]  # fmt: skip


def start(directory: Path) -> subprocess.Popen:
    # Compiled as for a user, not as for the other tests: what is promised to the bit is promised of that.
    as_ever = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    environment = os.environ | as_ever | {"PYTHONPATH": str(Path(recipe.__file__).parent.parent)}
    log = (directory.parent / f"{directory.name}.log").open("a")
    return subprocess.Popen([*COMMAND, "--out", str(directory)], env=environment, stdout=log, stderr=log)


def lines(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def final_state(directory: Path):
    run = open_run(directory)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        return checkpoints.restore(STEPS, run.trainer.abstract)


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(300) == 0
    rng, kills, seen = random.Random(4), 0, []
    while kills < 10:
        process = start(killed)
        # From anywhere between a new process and its last step; never later than the run's end.
        goal = lines(killed) + rng.randint(0, STEPS // 2 // 18)
        while process.poll() is None and lines(killed) < goal:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        assert process.poll() is None, f"the run ended after {kills} kills: it is too short for this test"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        seen.append(lines(killed))
    assert start(killed).wait(300) == 0
    assert len(set(seen)) >= 5, f"the kills came too close together: {seen}"

    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, STEPS + 1, 2))
    one, other = final_state(whole), final_state(killed)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    steps = range(350, STEPS + 1, 350)
    with Checkpoints(folder(whole)) as some, Checkpoints(folder(killed)) as others:
        assert some.steps == others.steps == [*steps, STEPS]
        assert [some.about(step)["digest"] for step in steps] == [others.about(step)["digest"] for step in steps]
    assert (killed / "samples.png").read_bytes() == (whole / "samples.png").read_bytes()


@pytest.mark.slow
def test_eight_devices_give_the_loss_of_one(tmp_path):
    """As two copies of four parts. In float32 the sum over devices rounds differently: after 24 steps the losses agree
    to 1e-4."""
    losses = {}
    for count, mesh in ((1, []), (8, ["--mesh.fsdp", "4"])):
        directory = tmp_path / str(count)
        environment = os.environ | {
            "JAX_NUM_CPU_DEVICES": str(count),
            "PYTHONPATH": str(Path(recipe.__file__).parent.parent),
        }
        words = [*COMMAND[:5], "--network.attention-head-dim", "32", *mesh, "--out", str(directory)]
        subprocess.run(words, env=environment, check=True, capture_output=True, timeout=300)
        assert json.loads((directory / "manifest.json").read_text())["devices"]["count"] == count
        losses[directory.name] = [
            json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()
        ]
    assert len(losses["1"]) == 12
    assert len({round(loss, 3) for loss in losses["1"]}) > 6  # the loss moves, so agreeing means something
    np.testing.assert_allclose(losses["8"], losses["1"], rtol=1e-4)
