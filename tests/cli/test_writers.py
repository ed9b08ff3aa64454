"""Who writes into a folder, and what is in it when that ends early: one writer, nothing mixed, nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from jdiff import cli
from jdiff.locks import locked
from jdiff.pipelines import Pipeline
from jdiff.train.restore import open_run
from tests import recipe

LONG = ["--steps", "100000", "--optimizer.decay", "none", "--log-every", "1", "--sample-every", "1000000"]


def content(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def meanwhile(path, act):
    """Does something, in a thread, as soon as there is a file."""

    def wait():
        while not path.exists():
            time.sleep(0.001)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def interrupted(capsys, *words):
    """What a command says when it ends by Ctrl-C."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    assert stop.value.code == 130
    return capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "sample", "evaluate", "export"])
def test_every_verb_that_writes_is_refused_where_another_writes(finished, refused, tmp_path, verb):
    out = {"train": finished, "evaluate": finished / "evaluate"}.get(verb, tmp_path / "out")
    words = {
        "train": ["train", recipe.__file__, "--out", out],
        "sample": ["sample", finished, "--out", out],
        "evaluate": ["evaluate", finished],
        "export": ["checkpoint", "export", finished, "--out", out],
    }[verb]
    with locked(out, what="testing"):
        before = content(finished)
        assert f"{out} is in use by process {os.getpid()} on " in refused(*words)
        assert content(finished) == before


def test_a_run_that_trains_can_be_looked_at(finished, tmp_path, capsys):
    with locked(finished, what="training"):
        for words in (["info"], ["checkpoint", "list"], ["checkpoint", "verify"]):
            cli.main([*words, str(finished)])
        cli.main(["sample", str(finished), "--n", "1", "--steps", "2"])
        cli.main(["evaluate", str(finished), "--n", "32", "--seeds", "1", "--levels", "2"])
    assert (finished / "evaluate.json").exists()


def test_the_second_of_two_trainers_is_refused_and_the_first_is_as_if_alone(tmp_path):
    """Two processes, and the first is then killed: a third goes on at once."""
    out = tmp_path / "run"
    words = [sys.executable, "-c", "from jdiff.cli import main; main()", "train", recipe.__file__, "--out", str(out)]
    with subprocess.Popen([*words, *LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        while not (out / "checkpoints" / "4").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        second = subprocess.run([*words, *LONG], capture_output=True, text=True, timeout=300)
        assert second.returncode == 2 and second.stderr.startswith(f"jdiff: {out} is in use by process {first.pid} on ")
        first.send_signal(signal.SIGKILL)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()[:-1]]
    assert steps == list(range(1, len(steps) + 1))
    newest = open_run(out).steps[-1]
    cli.main(["train", recipe.__file__, "--out", str(out), *LONG[2:], "--steps", str(newest + 1)])
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, newest + 2))


def test_lines_of_two_writers_are_mended_when_a_run_goes_on(finished, capfd):
    """As an older version left them, and a power loss."""
    path = finished / "metrics.jsonl"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_bytes("".join([*lines[:6], *lines[3:9], *lines[6:]]).encode() + b"\0" * 40 + b'\n[]\n{"step": 1e9')
    cli.main(["train", recipe.__file__, "--out", str(finished)])
    assert path.read_text() == whole
    assert "metrics.jsonl: dropped 8 lines that are repeated or damaged" in capfd.readouterr().err


def test_ctrl_c_saves_a_run_and_says_how_to_go_on(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", recipe.__file__, "--out", out, *LONG]
    thread = meanwhile(out / "metrics.jsonl", lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    said = interrupted(capsys, *words)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    step = open_run(out).steps[-1]
    assert f"jdiff: stopped after step {step} of 100000; to go on: jdiff train {recipe.__file__} --out {out}" in said
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == step


def test_a_directory_that_is_moved_away_ends_the_run(tmp_path, capsys):
    """Or a mount that vanishes: one line, nothing is written to another place, and what was there is there."""
    out, away = tmp_path / "run", tmp_path / "away"
    thread = meanwhile(out / "checkpoints" / "8", lambda: out.rename(away))
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", recipe.__file__, "--out", str(out), *LONG])
    thread.join()
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "Traceback" not in lines
    assert lines[-1].startswith("jdiff: ") and str(out) in lines[-1]
    assert not out.exists()
    assert open_run(away).state() is not None


def test_pictures_are_there_as_they_are_finished(finished, tmp_path, capsys, monkeypatch):
    """Ctrl-C in the third chunk of four: two are there, and the same command draws the others alone."""
    out, calls, call = tmp_path / "out", [], Pipeline.__call__

    def counted(self, *inputs, index, **options):
        calls.append(list(index))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, *inputs, index=index, **options)

    monkeypatch.setattr(Pipeline, "__call__", counted)
    words = ["sample", finished, "--n", 32, "--chunk", 8, "--steps", 2, "--out", out]
    said = interrupted(capsys, *words)
    assert f"jdiff: interrupted: 16 of 32 pictures are in {out}; the same command draws the others" in said
    assert "checkpoint" not in said
    assert sorted(path.name for path in out.iterdir()) == [f"{number:05d}.png" for number in range(16)]
    (out / "00003.png").write_bytes(b"")  # a power loss
    cli.main([str(word) for word in (*words, "--json")])
    assert json.loads(capsys.readouterr().out)["drawn"] == 17
    assert [number for call in calls[3:] for number in call] == [3, *range(16, 32)]
    drawn = content(out)
    shutil.rmtree(out)
    cli.main([str(word) for word in words])
    # Beside others in a chunk, a drawing differs by rounding alone.
    for path, data in drawn.items():
        path_of_before = tmp_path / "before.png"
        path_of_before.write_bytes(data)
        one, other = (np.asarray(Image.open(where), int) for where in (path, path_of_before))
        assert np.abs(one - other).max() <= 1


def test_no_name_is_used_for_another_picture(finished, tmp_path, refused, capsys):
    out = tmp_path / "out"
    words = ["sample", finished, "--n", 4, "--steps", 2, "--out", out]
    cli.main([str(word) for word in words])
    before = content(out)
    for other, named in (
        (["--seed", 1], "seed is 0 there and 1 here"),
        (["--class", "none"], 'class is null there and "none" here'),
        (["--solver", "heun"], 'solver is "dpmpp_2m" there and "heun" here'),
        (["--steps", 3], "steps is 2 there and 3 here"),
    ):
        assert f"{out} holds 00000.png of another drawing: {named}" in refused(*words, *other)
        assert content(out) == before
    cli.main([str(word) for word in (*words, "--json")])
    assert content(out) == before
    (tmp_path / "own").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "own" / "00007.png")
    assert "holds 00007.png, which does not say how it was drawn" in refused(*words[:-1], tmp_path / "own")
    # Where no folder was given, another drawing gets another name.
    capsys.readouterr()
    folders = set()
    for grid in ("karras", "uniform"):
        cli.main(["sample", str(finished), "--n", "1", "--grid", grid, "--json"])
        folders.add(json.loads(capsys.readouterr().out)["picture"])
    assert len(folders) == 2


def test_evaluations_stay_beside_the_last(finished, tmp_path, capsys):
    for n in (32, 16):
        cli.main(
            ["evaluate", str(finished), "--n", str(n), "--seeds", "1", "--levels", "2", "--out", str(tmp_path / "e")]
        )
    names = sorted(path.name for path in (tmp_path / "e" / "evaluate").iterdir())
    assert names == [f"step24_n{n}_seeds1_levels2.{kind}" for n in (16, 32) for kind in ("json", "png")]
    last = json.loads((tmp_path / "e" / "evaluate.json").read_text())
    assert last["samples"] == 16 and not (finished / "evaluate.json").exists()


def test_out_is_tried_before_work_begins(finished, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: pytest.fail("work has begun"))
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name, said in (("file", "is a file"), ("file/inside", "is a file"), ("link", "which does not exist")):
        for words in (["train", recipe.__file__], ["sample", finished], ["checkpoint", "export", finished]):
            message = refused(*words, "--out", tmp_path / name)
            assert said in message and str(tmp_path / name.partition("/")[0]) in message
    assert f"{tmp_path} is a folder" in refused("lab", "--out", tmp_path)
    assert "file" in refused("lab", "--out", tmp_path / "file" / "lab.png")


def test_data_that_was_moved_is_the_same_data(tmp_path, refused, monkeypatch, capsys):
    """Given by a relative path, gone on with from another directory, moved, and another interval of logging."""
    generator = np.random.default_rng(0)
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / "d" / "b").mkdir()
    for name in ("a", "b"):
        for i in range(40):
            picture = Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            picture.save(tmp_path / "d" / name / f"{i}.png")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["train", recipe.__file__, "--out", tmp_path / "run", "--optimizer.decay", "none", "--sampling.steps", 2]
    train = lambda *more: cli.main([str(word) for word in (*words, *more)])
    train("--data.folder", "d", "--steps", 4)
    monkeypatch.chdir(tmp_path / "other")
    evaluate = ["evaluate", str(tmp_path / "run"), "--n", "16", "--seeds", "1", "--levels", "2"]
    cli.main(evaluate)
    (tmp_path / "d").rename(tmp_path / "moved")
    assert f"folder {tmp_path / 'd'} does not exist" in refused(*evaluate)
    cli.main([*evaluate, "--data.folder", "../moved"])
    train("--data.folder", "../moved", "--steps", 6, "--log-every", 1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["folder"] == str(tmp_path / "other" / ".." / "moved") and config["steps"] == 6
    cli.main(evaluate)
    next((tmp_path / "moved" / "a").iterdir()).unlink()
    assert "has changed since it was started" in refused(*evaluate)
