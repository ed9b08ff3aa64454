"""Processes over loopback train as one does, stop together, and what they saved goes on in more, fewer or one; where
one hangs, each says where it stands."""

import json
import os
import shutil
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

STEPS = 30
WORDS = [
    "train", recipe.__file__, "--steps", str(STEPS), "--checkpoint-every", "200", "--sample-every", "1000",
    "--network.attention-head-dim", "32",
]  # fmt: skip
pytestmark = pytest.mark.slow


def start(
    directory: Path, shape: tuple[int, int], *words: str, program: tuple[str, ...] = ()
) -> list[subprocess.Popen]:
    """So many processes with so many devices each; notes lie beside the directory, unless it is another `program`."""
    count, devices = shape
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    surroundings = os.environ | {
        "PYTHONPATH": str(Path(recipe.__file__).parent.parent),
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    if count > 1:
        surroundings |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    program = program or ("tests.train.watched", str(directory.with_suffix(".notes")))
    return [
        subprocess.Popen(
            [sys.executable, "-m", *program, *WORDS, *words, "--out", str(directory)],
            env=surroundings | ({"JAX_PROCESS_ID": str(number)} if count > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def ended(processes: list[subprocess.Popen]) -> list[str]:
    """What processes that went well have printed."""
    said = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        said.append(out)
    return said


def notes(directory: Path) -> list[dict]:
    """Of all processes of a run."""
    return [json.loads(line) for path in directory.parent.glob(f"{directory.name}.notes.*") for line in path.open()]


def data(directory: Path) -> dict[int, dict[str, list]]:
    """By update and place in its batch, the example and the bits of its image."""
    found: dict[int, dict[str, list]] = {}
    for note in notes(directory):
        for place, row in note.get("rows", {}).items():
            assert found.setdefault(note["step"], {}).setdefault(place, row) == row
    return found


def metrics(directory: Path) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines] for name in ("step", "loss", "grad_norm")}


def samples(directory: Path) -> np.ndarray:
    return np.asarray(Image.open(directory / "samples.png"), int)


def test_four_processes_are_told_to_stop_and_other_numbers_of_them_go_on(tmp_path, request):
    """Gradients are summed in another order: measured, 3e-7 of the losses, 2e-6 of the norms."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    ended(start(whole, (1, 1)))
    processes = start(shared, (4, 2), "--mesh.fsdp", "4")
    request.addfinalizer(lambda: [process.kill() for process in processes])
    while not (shared / "metrics.jsonl").exists():
        assert processes[0].poll() is None, processes[0].communicate()[1]
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)  # one of them is told, all stop
    said = ended(processes)
    step = open_run(shared).steps[-1]
    assert 2 <= step < STEPS and f"stopped after step {step} of {STEPS}" in said[0]
    assert said[1:] == [""] * 3  # the first process speaks for all
    saved = {note["bits"] for note in notes(shared) if note.get("saved") == step}
    assert len(saved) == 1

    wanted, examples = metrics(whole), data(whole)
    assert wanted["step"] == list(range(2, STEPS + 1, 2)) and list(examples) == list(range(1, STEPS + 1))
    assert data(shared) == {number: examples[number] for number in range(1, step + 1)}
    for shape, words in (((1, 8), ["--mesh.fsdp", "8"]), ((2, 1), ["--mesh.fsdp", "2", "--json"]), ((1, 1), [])):
        directory = shutil.copytree(shared, tmp_path / "x".join(map(str, shape)))
        said = ended(start(directory, shape, *words))
        if "--json" in words:
            assert json.loads(said[0])["step"] == STEPS and said[1:] == [""]  # and nothing of any library's
        restored = [(note["restored"], note["bits"]) for note in notes(directory) if "restored" in note]
        assert restored == [(step, *saved)] * shape[0]
        assert data(directory) == {number: examples[number] for number in range(step + 1, STEPS + 1)}
        found = metrics(directory)
        assert found["step"] == wanted["step"]
        np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-5)
        np.testing.assert_allclose(found["grad_norm"], wanted["grad_norm"], rtol=1e-4)
        # Not the parameters themselves: biases of keys have no gradient but rounding, which Adam makes steps of.
        assert np.abs(samples(directory) - samples(whole)).max() <= 1


def test_where_one_process_hangs_each_prints_its_stack_and_ends(tmp_path, request):
    """Also the one whose own watchdog is too late: JAX aborts it when the other has ended."""
    processes = start(tmp_path / "run", (2, 1), "--faults.hang-seconds", "5", program=("tests.train.hung",))
    request.addfinalizer(lambda: [process.kill() for process in processes])
    waiting, hanging = (process.communicate(timeout=300)[1] for process in processes)
    assert all(process.returncode for process in processes)
    assert "in _updates" in waiting
    assert "Timeout" not in hanging and "in stuck_here" in hanging and "in _updates" in hanging
