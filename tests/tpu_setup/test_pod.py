"""A pod of four hosts under stand-ins, each a process that trains the small recipe: brought up, lost, brought back."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from jdiff.train.restore import open_run
from tests import recipe

pytestmark = pytest.mark.slow
STEPS = 100
RUN = [
    "run-1", "jdiff", "train", recipe.__file__, "--sample-every", "1000", "--checkpoint-every", "10",
    "--mesh.fsdp", "2",
]  # fmt: skip


def command(cloud, steps=STEPS):
    return [*RUN, "--steps", str(steps), "--out", str(cloud.folder / "buckets" / "bucket" / "run")]


def directory(cloud):
    return cloud.folder / "buckets" / "bucket" / "run"


def steps(cloud):
    """Of the checkpoints that there are."""
    folder = directory(cloud) / "checkpoints"
    return sorted(int(path.name.split("_")[-1]) for path in folder.glob("*[0-9]")) if folder.exists() else []


def wait_for(what, babysitter=None, seconds=240):
    end = time.monotonic() + seconds
    while not what():
        assert babysitter is None or babysitter.poll() is None, babysitter.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)


def pids(cloud):
    return [int((host / "jdiff-runs/run-1/pid").read_text().split()[0]) for host in cloud.hosts()]


def watched(cloud):
    """Whether a babysitter of the pod has begun: it holds its lock."""
    lock = (cloud.folder / "jdiff-babysit-pod.lock").stat().st_ino
    return f":{lock} " in Path("/proc/locks").read_text()


def signalled(cloud, which):
    for pid in pids(cloud):
        os.killpg(pid, which)


def whole(cloud, babysitter, steps=STEPS):
    """Every step is in the metrics once, whatever was lost on the way."""
    out, err = babysitter.communicate(timeout=400)
    assert babysitter.returncode == 0, (out, err)
    assert "run-1 is done" in out
    lines = [json.loads(line) for line in (directory(cloud) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, steps + 1, 2))
    assert open_run(directory(cloud)).steps[-1] == steps


def test_a_pod_that_is_taken_away_and_a_host_that_dies(cloud):
    babysitter = cloud.start("babysit", *command(cloud))
    wait_for(lambda: steps(cloud), babysitter)
    cloud.set_state("SUSPENDED")  # what a spot pod becomes when it is taken
    wait_for(lambda: cloud.created() == 2, babysitter)
    before = max(steps(cloud))
    wait_for(lambda: max(steps(cloud)) > before, babysitter)
    os.killpg(pids(cloud)[2], signal.SIGKILL)
    whole(cloud, babysitter)
    assert cloud.created() == 2
    assert cloud.call("teardown").returncode == 0
    assert not cloud.hosts() and steps(cloud)


def test_a_babysitter_that_is_killed_at_any_moment(cloud):
    """Started again at once, each time: one pod, one run. Two hosts are enough for that."""
    cloud.environment["HOSTS"] = "2"
    delays = [0.2, 1.0, 3.0, 6.0]
    for delay in delays:
        babysitter = cloud.start("babysit", *command(cloud, steps=30))
        time.sleep(delay)
        os.killpg(babysitter.pid, signal.SIGKILL)
        babysitter.communicate()
    babysitter = cloud.start("babysit", *command(cloud, steps=30))
    wait_for(lambda: len(steps(cloud)) > 0, babysitter)
    running = pids(cloud)
    signalled(cloud, signal.SIGSTOP)  # so that the run is not over before the next two have begun
    os.kill(babysitter.pid, signal.SIGKILL)
    babysitter.communicate()
    assert not watched(cloud)
    babysitter = cloud.start("babysit", *command(cloud, steps=30))
    wait_for(lambda: watched(cloud), babysitter)
    other = cloud.call("babysit", *command(cloud, steps=30))
    assert other.returncode == 2 and "another babysitter of pod runs here" in other.stderr
    assert pids(cloud) == running
    signalled(cloud, signal.SIGCONT)
    whole(cloud, babysitter, steps=30)
    assert cloud.created() == 1
    assert pids(cloud) == running  # what ran on was not started again


def test_a_run_that_cannot_work_is_given_up(cloud):
    cloud.environment["HOSTS"] = "1"
    babysitter = cloud.start("babysit", "run-1", "false", FAILURES="2")
    err = babysitter.communicate(timeout=200)[1]
    assert babysitter.returncode == 2 and "run-1 has failed 3 times in a row" in err
    assert cloud.created() == 1 and cloud.hosts()
