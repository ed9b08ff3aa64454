"""The scripts for TPU pods one by one, against stand-ins for what they call. No TPU is involved."""

import json
import shlex
import subprocess
import time

import pytest

from tests.tpu_setup.conftest import SCRIPTS

COMMAND = ["bash", "-c", "echo it\\'s '$HOME' \"a  b\"; sleep ${1:-0}", "name"]
WORDS = {"launch": ["run-1", "jdiff", "train", "it's a $HOME; test"], "babysit": ["run-1", "jdiff", "train", "x"]}
WORDS |= {"logs": ["run-1"], "stop": ["run-1"], "status": ["run-1"]}
ALL = sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.stem not in ("common", "host"))


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("script", ALL)
def test_a_dry_run_prints_commands_that_can_be_pasted_and_runs_none(script, cloud):
    done = cloud.call(script, "--dry-run", *WORDS.get(script, []))
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == []
    read = subprocess.run(["bash", "-n"], input=done.stdout, capture_output=True, text=True, check=True)
    assert not read.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("gcloud")]
    assert commands and all(words[:3] == ["gcloud", "compute", "tpus"] for words in commands)
    assert all("--zone=us-x1-b" in words for words in commands)


@pytest.mark.parametrize("script", ALL)
def test_help_and_missing_settings(script, cloud):
    assert cloud.call(script, "--help").stdout.startswith(f"usage: {script}.sh [--dry-run]")
    done = cloud.call(script, *WORDS.get(script, []), POD="")
    assert done.returncode == 2 and "set POD" in done.stderr
    done = cloud.call(script, *WORDS.get(script, []), POD="--all")
    assert done.returncode == 2 and cloud.calls() == []


def test_asking_twice_makes_one_pod(cloud):
    first, second = cloud.start("create"), cloud.start("create")
    assert first.wait(60) == second.wait(60) == 0, second.communicate()
    assert cloud.call("create", SPOT="1").stdout.strip() == "pod is ACTIVE"
    assert cloud.created() == 1


def test_a_spot_pod_is_asked_for_as_one(cloud):
    assert cloud.call("create", SPOT="1", PROJECT="mine").returncode == 0
    words = cloud.calls()[-1]
    assert {"--spot", "--project=mine", "--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5"} <= set(words)


def test_installing_is_tried_again_and_done_once(cloud):
    cloud.call("create")
    cloud.fail("scp", 2)
    cloud.fail("ssh", 1)
    for _ in range(2):
        done = cloud.call("install")
        assert done.returncode == 0, done.stderr
    assert all((host / "jdiff" / "pyproject.toml").exists() for host in cloud.hosts())
    assert all(len((host / "pip-calls").read_text().splitlines()) == 1 for host in cloud.hosts())
    cloud.fail("scp", 100)
    assert cloud.call("install", RETRIES="3").returncode != 0


def test_a_command_starts_once_goes_on_alone_and_keeps_its_words(cloud):
    cloud.call("create")
    cloud.call("install")
    for _ in range(2):
        assert cloud.call("launch", "run-1", *COMMAND, "60").returncode == 0
    assert cloud.call("status", "run-1").stdout.count("running") == 4
    wait_for(lambda: cloud.call("logs", "run-1").stdout.count("it's $HOME a  b") == 4)
    assert cloud.call("stop", "run-1").returncode == 0
    assert cloud.call("status", "run-1").stdout.count("failed") == 4
    assert cloud.call("status", "run-2").stdout.count("absent") == 4
    assert cloud.call("launch", "run-1", *COMMAND).returncode == 0
    wait_for(lambda: cloud.call("status", "run-1").stdout.count("done") == 4)


def test_hosts_are_looked_at(cloud):
    cloud.call("create")
    cloud.call("install")
    done = cloud.call("preflight", EXPECTED_DEVICES="1")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4 and all(line["flops_a_second"] > 0 and not line["wrong"] for line in lines)
    done = cloud.call("preflight", EXPECTED_DEVICES="4")
    assert done.returncode == 1 and "1 devices, not 4" in done.stdout
    assert cloud.call("preflight", EXPECTED_PLATFORM="tpu").returncode == 1


def test_what_is_gone_is_torn_down(cloud):
    cloud.call("create")
    cloud.fail("delete", 1)
    assert cloud.call("teardown").returncode == 0
    assert cloud.call("status").stdout == "pod pod: NONE\n"
    assert cloud.call("teardown").stdout == "there is no pod\n"
