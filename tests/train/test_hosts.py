"""Several processes over loopback train as one does, stop together, and what they saved goes on in one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jdiff.train.restore import open_run
from tests import recipe

STEPS = 100
WORDS = [
    "train", recipe.__file__, "--steps", str(STEPS), "--checkpoint-every", "200", "--sample-every", "1000",
    "--network.attention-head-dim", "32", "--mesh.fsdp", "2",
]  # fmt: skip
pytestmark = pytest.mark.slow


def start(directory: Path, devices: int, **environment: str) -> subprocess.Popen:
    surroundings = os.environ | environment | {
        "PYTHONPATH": str(Path(recipe.__file__).parent.parent),
        "JAX_NUM_CPU_DEVICES": str(devices),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", "from jdiff.cli import main; main()", *WORDS, "--out", str(directory)],
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(directory: Path, count: int, devices: int) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    named = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [start(directory, devices, **named, JAX_PROCESS_ID=str(number)) for number in range(count)]


def ended(process: subprocess.Popen) -> str:
    """What a process that went well has printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def metrics(directory: Path) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines] for name in ("step", "loss", "grad_norm")}


def test_two_processes_are_told_to_stop_and_one_goes_on(tmp_path, request):
    """Gradients are summed in another order: measured, 3e-7 of the losses, 2e-6 of the norms."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    ended(start(whole, 4))
    processes = together(shared, 2, 2)
    request.addfinalizer(lambda: [process.kill() for process in processes])
    while not (shared / "metrics.jsonl").exists():
        assert processes[0].poll() is None, processes[0].communicate()[1]
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)  # one of them is told, both stop
    said = [ended(process) for process in processes]
    step = open_run(shared).steps[-1]
    assert 2 <= step < STEPS and f"stopped after step {step} of {STEPS}" in said[0]
    assert "stopped" not in said[1]  # the first process speaks for all
    ended(start(shared, 8))
    one, other = metrics(whole), metrics(shared)
    assert one["step"] == other["step"] == list(range(2, STEPS + 1, 2))
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["grad_norm"], other["grad_norm"], rtol=1e-4)
    # Not the parameters themselves: biases of keys have no gradient but rounding, which Adam makes steps of.
    drawn = [np.asarray(Image.open(directory / "samples.png"), int) for directory in (whole, shared)]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
