"""Which checkpoints stay, from the command line."""

import json
import shutil
from typing import Any

import numpy as np
import pytest

from jdiff import cli
from jdiff.data import open_source, ordered
from jdiff.train.held_out import held_out_loss
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


def lines(directory, name):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


HELD_OUT = ["--log-every", "1", "--keep.latest", "1", "--keep.best", "2", "--keep.metric", "held_out_loss"]


def test_the_best_on_held_out_data(tmp_path, capsys):
    """At a rate that is too high, without averaging: what is best in training is not best of what is held out."""
    directory = tmp_path / "run"
    words = ["--ema-decay", "0", "--optimizer.learning-rate", "0.05", "--optimizer.decay", "none"]
    steps = run(directory, *HELD_OUT, *words)
    losses = {line["step"]: line["loss"] for line in lines(directory, "held_out.jsonl")}
    assert list(losses) == list(range(4, 25, 4))
    assert steps == sorted({24, *sorted(losses, key=losses.get)[:2]})
    training = [line["loss"] for line in lines(directory, "metrics.jsonl")]
    means = {step: sum(training[step - 4 : step]) / 4 for step in losses}
    assert steps != sorted({24, *sorted(means, key=means.get)[:2]})  # or this would say nothing of it
    assert lines(directory, "throughput.jsonl")[-1]["seconds"]["eval"] > 0
    capsys.readouterr()
    cli.main(["checkpoint", "list", str(directory), "--json"])
    assert {row["step"]: row["loss"] for row in json.loads(capsys.readouterr().out)} == {n: losses[n] for n in steps}


def test_held_out_data_is_that_of_no_update_and_the_same_at_each_step(tmp_path):
    """A rate that moves nothing leaves the figure to the bit; and no image of it is one of training's."""
    run(tmp_path / "still", *HELD_OUT, "--optimizer.learning-rate", "1e-30", "--steps", "8")
    (one, loss), (two, same) = (line.values() for line in lines(tmp_path / "still", "held_out.jsonl"))
    assert (one, two) == (4, 8) and loss == same
    trainer = open_run(tmp_path / "still").trainer
    training = {image.tobytes() for image in everything(trainer, "train")}
    held_out = {np.asarray(image).tobytes() for batch in trainer.held_out(1000) for image in batch["image"]}
    assert held_out == {image.tobytes() for image in everything(trainer, "held_out")} and not held_out & training


def everything(trainer, side):
    source = open_source(trainer.experiment.data, side)
    return np.concatenate([batch["image"] for batch in ordered(source, 256)])


def test_a_run_that_is_gone_on_with_measures_what_a_whole_one_does(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = [*HELD_OUT, "--keep.latest", "3"]
    run(whole, *words)
    run(parts, *words)
    for step in (24, 20):
        shutil.rmtree(parts / "checkpoints" / str(step))
    run(parts, *words)
    assert lines(parts, "held_out.jsonl") == lines(whole, "held_out.jsonl")
    opened = open_run(parts)
    state, loss = opened.state(), held_out_loss(opened.trainer)
    assert loss(state.ema) == pytest.approx(lines(parts, "held_out.jsonl")[-1]["loss"], rel=1e-6)
    assert abs(loss(state.params) - loss(state.ema)) > 1e-3  # of the average, that is


def test_checkpoints_by_the_clock(tmp_path):
    assert run(tmp_path / "run", "--checkpoint-every", "1000", "--checkpoint-minutes", "1e-9") == [20, 22, 24]
    due = Due(1e3)
    assert not due() and not Due(None)()


def test_what_does_not_fit_is_named():
    wrong: list[tuple[str, Any, str]] = [
        ("latest", 0, "at least 1; got 0"),
        ("every", 0, "at least 1; got 0"),
        ("best", -1, "at least 0; got -1"),
        ("metric", "fid", "loss or held_out_loss; got 'fid'"),
    ]
    for field, value, said in wrong:
        with pytest.raises(ValueError, match=f"keep.{field} must be {said}"):
            Keep(**{field: value})
