"""What a run does when things go wrong: bad updates, notices, damaged checkpoints, a full disk, a step that hangs."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import cli
from jdiff.train.checkpoint import Checkpoints
from jdiff.train.faults import Faults, judge, none_skipped
from jdiff.train.loop import train
from jdiff.train.replay import replay
from jdiff.train.restore import open_run
from tests import recipe

SHORT = dataclasses.replace(recipe.experiment, steps=12, sample_every=100)


def equal(one, other):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to: its directory and its last state."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, train(SHORT, directory)


def test_which_updates_are_skipped():
    faults, skipped = Faults(spike=4.0, skips=3), none_skipped()
    norms = [100.0, 1.0, np.nan, 3.9, 4.0, 5000.0, 5000.0, 1.0, np.inf, np.nan, 1e9, 1.0, 1.0]
    made = []
    for norm in norms:
        good, skipped = judge(faults, skipped, jnp.float32(1.0), jnp.float32(norm))
        made.append(bool(good))
    # Means: 100, 99.01, ..., so 5000 leaps and the rest does not. After three in a row nothing is made any more.
    assert made == [True, True, False, True, True, False, False, True, False, False, False, False, False]
    assert (int(skipped.total), int(skipped.in_a_row)) == (8, 5)
    np.testing.assert_allclose(
        skipped.norm, 0.99**4 * 100 + sum(0.01 * 0.99**k * n for k, n in enumerate((1, 4, 3.9, 1))), rtol=1e-5
    )
    good, _ = judge(Faults(), none_skipped(), jnp.float32(np.nan), jnp.float32(1.0))
    assert not good
    good, _ = judge(Faults(), none_skipped()._replace(norm=jnp.float32(1.0)), jnp.float32(1.0), jnp.float32(1e30))
    assert good  # without `spike` only what is not finite


def test_a_run_that_goes_bad_goes_back_gives_up_and_can_be_replayed(tmp_path, capfd):
    """With such a learning rate the parameters overflow after a few updates, each time anew."""
    optimizer = dataclasses.replace(SHORT.optimizer, learning_rate=1e30, warmup=6, weight_decay=0.0)
    faults = Faults(skips=3, rollbacks=2)
    hot = dataclasses.replace(SHORT, optimizer=optimizer, faults=faults, steps=24, checkpoint_every=1)
    with pytest.raises(
        ValueError, match=r"3 updates in a row were skipped, up to step \d+, and again .* jdiff replay"
    ) as stop:
        train(hot, tmp_path / "run")
    assert capfd.readouterr().err.count("going back to the last checkpoint") == 2
    bundle = Path(str(stop.value).rsplit(" ", 1)[1])
    fault = json.loads((bundle / "fault.json").read_text())
    found = replay(open_run(bundle))
    assert found["same"] and found["skipped"] and found["step"] == fault["step"]
    assert not np.isfinite(found["now"]["grad_norm"])
    capfd.readouterr()
    cli.main(["replay", str(bundle)])
    told = capfd.readouterr().out
    assert f"step {fault['step']}, examples {fault['index'][0]} to" in told and "the same to the bit" in told
    # No checkpoint is of a state that was going bad: the last one is from just before.
    run = open_run(tmp_path / "run")
    assert run.steps[-1] == fault["step"] - 1
    equal(run.state(), open_run(bundle).state())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state().params))


def test_a_bundle_is_of_the_update_that_leapt(tmp_path):
    """The first gradient that is a hundredth above the mean: its figures are finite, and no other batch's."""
    leaping = dataclasses.replace(SHORT, faults=Faults(spike=1.01, skips=1, rollbacks=0), steps=100)
    with pytest.raises(ValueError, match=r"1 updates in a row were skipped") as stop:
        train(leaping, tmp_path / "run")
    bundle = Path(str(stop.value).rsplit(" ", 1)[1])
    found = replay(open_run(bundle))
    assert np.isfinite(list(found["now"].values())).all() and found["same"] and found["skipped"]
    first = (found["step"] - 1) * SHORT.batch_size
    assert found["index"] == list(range(first, first + SHORT.batch_size))


def test_a_bundle_must_be_one(whole):
    with pytest.raises(ValueError, match=r"is no replay bundle: it has no fault\.json"):
        replay(open_run(whole[0]))


def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_had_been(whole, tmp_path):
    directory = tmp_path / "run"
    metrics = directory / "metrics.jsonl"

    def notice():
        while not metrics.exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=notice)
    thread.start()
    stopped = train(SHORT, directory)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert 2 <= int(stopped.step) < 12 and not (directory / "samples.png").exists()
    assert open_run(directory).steps[-1] == int(stopped.step)
    equal(train(SHORT, directory), whole[1])
    assert metrics.read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def largest(checkpoint):
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(checkpoint):
    """A bit here and there: not every byte of the file is of an array."""
    path = largest(checkpoint)
    data = bytearray(path.read_bytes())
    data[len(data) // 50 :: len(data) // 20] = bytes(byte ^ 1 for byte in data[len(data) // 50 :: len(data) // 20])
    path.write_bytes(data)


def test_damaged_checkpoints_are_passed_over(whole, tmp_path, capfd):
    directory = shutil.copytree(whole[0], tmp_path / "run")
    flip(directory / "checkpoints" / "12")
    largest(directory / "checkpoints" / "8").unlink()
    equal(train(SHORT, directory), whole[1])
    told = capfd.readouterr().err
    for step in (12, 8):
        assert f"passed over: checkpoint {directory / 'checkpoints' / str(step)} is damaged" in told
    assert (directory / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    with Checkpoints(directory / "checkpoints") as checkpoints:
        equal(checkpoints.restore(12, open_run(directory).trainer.abstract), whole[1])  # made anew


def test_a_run_without_any_whole_checkpoint_stops(whole, tmp_path):
    directory = shutil.copytree(whole[0], tmp_path / "run")
    for step in (4, 8, 12):
        flip(directory / "checkpoints" / str(step))
    with pytest.raises(ValueError, match=r"checkpoints/4 is damaged"):
        train(SHORT, directory)


def test_what_has_no_room_is_not_begun(tmp_path):
    state = {"params": np.broadcast_to(np.float32(0), (10**15,))}  # larger than any disk, and of four bytes
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(OSError, match=r"no room for the checkpoint of step 7 .* there is none yet"):
            checkpoints.save(7, state, "name")
        assert checkpoints.steps == [] and not any((tmp_path / "checkpoints").rglob("7*"))


def test_a_full_disk_stops_the_run_before_damage(tmp_path):
    """A small file system of its own; needs the right to mount one."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        with pytest.raises(OSError, match=r"no room for the checkpoint of step \d+ .* that of step \d+ is whole"):
            train(dataclasses.replace(SHORT, checkpoint_every=1), place / "run")
        run = open_run(place / "run")
        assert int(run.state().step) == run.steps[-1] < 12
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_a_step_that_hangs_ends_the_process_and_says_where(tmp_path):
    program = f"""
import time
from jdiff.train import loop, trainer
from tests import recipe
import dataclasses
from pathlib import Path
real = trainer.Trainer.batches
def hangs(self, source, start, *rest):
    for number, batch in enumerate(real(self, source, start, *rest)):
        if number == 3:
            time.sleep(1000)
        yield batch
trainer.Trainer.batches = hangs
faults = dataclasses.replace(recipe.experiment.faults, hang_seconds=5.0)
loop.train(dataclasses.replace(recipe.experiment, faults=faults), Path({str(tmp_path / "run")!r}))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(recipe.__file__).parent.parent)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 1
    assert "Timeout (0:00:05)!" in ended.stderr and "in hangs" in ended.stderr and "in _updates" in ended.stderr
