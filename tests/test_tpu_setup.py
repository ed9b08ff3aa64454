"""The TPU script against a stand-in for gcloud: order, quoting, and what it refuses. No TPU is involved."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tpu_setup" / "run_on_all_hosts.sh"
COMMAND = ["jdiff", "train", "experiments/openmoji.py", "--name", "it's a $HOME; test", "--out", "a  b"]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")


def call(*arguments, path=os.environ["PATH"]):
    return subprocess.run(
        ["bash", SCRIPT, *arguments], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


def fake_gcloud(folder, hosts):
    """A gcloud that knows some hosts and notes its arguments, separated by NUL, one call after another."""
    tool = folder / "gcloud"
    tool.write_text(
        "#!/usr/bin/env bash\n"
        f'printf "%s\\0" "$@" $\'\\n\' >> {shlex.quote(str(folder / "calls"))}\n'
        f'if [ "$4" = describe ]; then printf "10.0.0.%s\\n" $(seq {hosts}); fi\n'
    )
    tool.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def calls(folder):
    text = (folder / "calls").read_text()
    return [call.strip("\0").split("\0") for call in text.split("\n\0") if call]


def words_of_launch(command):
    """What the remote shell makes of the launch command: its words, by a real bash."""
    body = command.removeprefix("cd ~/jdiff && PATH=~/jdiff-venv/bin:$PATH ")
    assert body != command
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {body}"], capture_output=True, text=True, check=True)
    return printed.stdout.split("\0")[:-1]


def test_it_is_bash():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.parametrize("arguments", [[], ["--dry-run"], ["name", "zone"], ["--help", "zone", "jdiff"]])
def test_too_few_arguments_print_the_usage(arguments):
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: tpu_setup/run_on_all_hosts.sh [--dry-run] NAME ZONE COMMAND...")


def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path):
    done = call("--dry-run", "pod", "us-x1-b", *COMMAND, path=fake_gcloud(tmp_path, 1))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "calls").exists()
    commands = [line for line in done.stdout.splitlines() if line.startswith(("gcloud", "git"))]
    assert [shlex.split(line)[0] for line in commands] == ["gcloud", "git", "gcloud", "gcloud", "gcloud"]
    assert [line.split()[4] for line in commands if line.startswith("gcloud")] == ["describe", "scp", "ssh", "ssh"]
    assert all("--zone=us-x1-b" in line for line in commands if line.startswith("gcloud"))
    # What is printed can be pasted: bash reads the last line back into the same words.
    read = subprocess.run(["bash", "-c", f"printf '%s\\0' {commands[-1]}"], capture_output=True, text=True, check=True)
    launch = next(word for word in read.stdout.split("\0") if word.startswith("--command="))
    assert words_of_launch(launch.removeprefix("--command=")) == COMMAND


def test_one_host_is_described_copied_to_installed_and_started(tmp_path):
    done = call("pod", "us-x1-b", *COMMAND, path=fake_gcloud(tmp_path, 1))
    assert done.returncode == 0, done.stderr
    describe, copy, install, launch = calls(tmp_path)
    assert [call[3] for call in (describe, copy, install, launch)] == ["describe", "scp", "ssh", "ssh"]
    assert copy[5] == "pod:jdiff.tar.gz" and not Path(copy[4]).exists()
    assert all("--worker=all" in call for call in (copy, install, launch))
    assert "pip install" in install[6] and words_of_launch(launch[6].removeprefix("--command=")) == COMMAND


def test_several_hosts_are_refused_before_anything_is_sent(tmp_path):
    done = call("pod", "us-x1-b", *COMMAND, path=fake_gcloud(tmp_path, 4))
    assert done.returncode == 1
    assert "pod must have one host, got 4" in done.stderr
    assert [call[3] for call in calls(tmp_path)] == ["describe"]
