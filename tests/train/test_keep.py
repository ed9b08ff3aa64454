"""Which checkpoints stay, from the command line."""

import json

import pytest

from jdiff import cli
from jdiff.train.keep import Due, Keep
from jdiff.train.restore import open_run
from tests import recipe


def run(directory, *words):
    cli.main(["train", recipe.__file__, "--out", str(directory), "--sample-every", "1000", *words])
    return open_run(directory).steps


def test_the_newest_and_every_so_many_and_the_best(tmp_path):
    words = ["--log-every", "1", "--keep.latest", "1", "--keep.every", "12", "--keep.best", "1"]
    steps = run(tmp_path / "run", *words)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    means = {step: sum(losses[step - 4 : step]) / 4 for step in range(4, 25, 4)}
    best = min(means, key=means.get)
    assert steps == sorted({24, 12, best})
    assert best not in (12, 24)  # or this would say nothing of it


def test_checkpoints_by_the_clock(tmp_path):
    assert run(tmp_path / "run", "--checkpoint-every", "1000", "--checkpoint-minutes", "1e-9") == [20, 22, 24]
    due = Due(1e3)
    assert not due() and not Due(None)()


def test_what_does_not_fit_is_named():
    for field, value in (("latest", 0), ("every", 0), ("best", -1)):
        with pytest.raises(ValueError, match=f"keep.{field} must be at least"):
            Keep(**{field: value})
