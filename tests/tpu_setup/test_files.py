"""What other launchers read: parsed, and held against what they start."""

import re
import shlex
import subprocess
import time

import pytest
import yaml

from tests.tpu_setup.conftest import ROOT, SCRIPTS


def test_slurm_passes_the_words_on_and_saves_when_told_to_leave(cloud):
    """Under stand-ins for srun and scontrol: a step that ends well when it is asked to, and a job that queues again."""
    tools = cloud.folder / "tools"
    tools.mkdir()
    (tools / "srun").write_text(
        '#!/usr/bin/env bash\ntrap "echo saved >> $CLOUD/said; exit 0" TERM\n'
        'printf "%s\\0" "$@" > $CLOUD/words; for _ in $(seq 300); do sleep 0.1; done\n'
    )
    (tools / "scontrol").write_text('#!/usr/bin/env bash\necho "$@" >> $CLOUD/said\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    words = ["jdiff", "train", "it's a $HOME; test", "--out", "a  b"]
    surroundings = cloud.environment | {"PATH": f"{tools}:{cloud.environment['PATH']}", "SLURM_JOB_ID": "17"}
    job = subprocess.Popen([SCRIPTS / "slurm.sbatch", *words], env=surroundings, stdout=subprocess.PIPE, text=True)
    while not (cloud.folder / "words").exists() or not (cloud.folder / "words").read_text():
        assert job.poll() is None
    time.sleep(1)  # bash hears a signal that comes just before its `wait` only when that ends
    job.send_signal(10)  # SIGUSR1, by which Slurm warns
    assert job.wait(30) == 0
    assert (cloud.folder / "words").read_text().split("\0")[1:-1] == words
    assert (cloud.folder / "said").read_text() == "saved\nrequeue 17\n"


def test_the_readme_brings_a_pod_up_in_six_commands_at_most():
    text = (SCRIPTS / "README.md").read_text()
    block = re.search(r"```bash\n(.*?)```", text, re.S)[1].splitlines()
    assert len(block) <= 6
    for line in block:
        words = shlex.split(line)
        assert words[0] in ("export", "gcloud") or (ROOT / words[0]).exists(), line


def test_scripts_that_the_readme_names_exist_and_the_other_way_round():
    text = (SCRIPTS / "README.md").read_text()
    there = {path.name for path in SCRIPTS.iterdir() if path.is_file()}
    inner = {"README.md", "common.sh", "host.sh", "preflight.py"}
    assert set(re.findall(r"[\w]+\.(?:sh|yaml|sbatch)\b", text)) | {"Dockerfile"} == there - inner


@pytest.mark.parametrize("name", ["jobset.yaml", "skypilot.yaml"])
def test_other_launchers_are_told_of_recipes_that_exist(name):
    """They are parsed here, and no more."""
    text = (SCRIPTS / name).read_text()
    assert yaml.safe_load(text)
    recipes = re.findall(r"experiments/\w+\.py", text)
    assert recipes and all((ROOT / recipe).exists() for recipe in recipes)


def test_the_image_holds_what_it_copies():
    for line in (SCRIPTS / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line
