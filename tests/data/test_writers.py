"""Two processes, full disks and odd places: one writer a folder, and an error that names the file."""

import os
import subprocess
import sys
import time

import pytest

from jdiff import cli
from jdiff.locks import locked
from tests.data import hostile


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for n in range(6):
        (images / f"{n}.png").write_bytes(hostile.PNG)
    for words in (
        ["pack", images, "-o", tmp_path / "shards"],
        ["index", tmp_path / "shards", "-o", tmp_path / "index", "--workers", 1],
    ):
        cli.main(["data", *map(str, words)])
    return tmp_path


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", *map(str, words)])
    err = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in err and "Traceback" not in err
    return err


VERBS = {
    "pack": ("shards", ["pack", "images", "-o", "shards"]),
    "index": ("index", ["index", "shards", "-o", "index", "--workers", "1"]),
    "score": ("index/scores/sharpness", ["score", "index", "--scorer", "sharpness"]),
    "dedup": ("index/dedup", ["dedup", "index"]),
    "filter": (".view.arrow.lock", ["filter", "index", "-o", "view.arrow"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_second_of_two_writers_is_refused_in_words(folder, capsys, monkeypatch, verb):
    monkeypatch.chdir(folder)
    place, words = VERBS[verb]
    code = "import sys; from pathlib import Path; from jdiff.locks import locked\n"
    code += "with locked(Path(sys.argv[1]), what='holding it'): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        err = refused(capsys, *words)
        assert f"{place} is in use by process {holder.pid}" in err and "holding it" in err
        holder.kill()
    # A killed holder is followed at once.
    start = time.monotonic()
    cli.main(["data", *words])
    assert time.monotonic() - start < 30 and not list(folder.rglob(".jdiff.lock")) and not list(folder.rglob("*.lock"))


def test_encode_refuses_the_second_writer(folder, capsys, monkeypatch):
    from jdiff.cli import data_encode

    monkeypatch.chdir(folder)
    cli.main(["data", "filter", "index", "-o", "view.arrow"])
    coder = type("Coder", (), {"divisor": 1, "fingerprint": "x", "scaling": {"shift": [0.0], "scale": [1.0]}})
    monkeypatch.setattr("jdiff.pipelines.image_coder", lambda name: coder)
    assert data_encode.locked is locked
    with locked(folder / "out", what="encoding"):
        assert "is in use by process" in refused(
            capsys, "encode", "view.arrow", "--autoencoder", "x", "-o", "out", "--size", 8
        )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["index", "shards", "-o", "new", "--workers", 1], "parquet"),
        (["score", "index", "--scorer", "sharpness"], "parquet"),
        (["dedup", "index", "--distance", -1], "pictures.parquet"),
        (["filter", "index", "-o", "view.arrow"], "view.arrow"),
        (["pack", "images", "-o", "packed"], "packed.json"),
    ],
)
def test_a_full_disk_is_named(folder, capsys, monkeypatch, words, name):
    """Whatever is about to take a file's place has no room."""
    monkeypatch.chdir(folder)
    with_name = type(folder).with_name

    def full(path, name):
        made = with_name(path, name)
        if name.startswith(".") and name.endswith(".tmp"):
            made.unlink(missing_ok=True)
            made.symlink_to("/dev/full")
        return made

    monkeypatch.setattr(type(folder), "with_name", full)
    err = refused(capsys, *words)
    assert f"{name} cannot be written: " in err and "space" in err.lower()
    assert not list(folder.rglob("*.tmp"))


def test_places_that_cannot_be_written_are_named(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "dangling").symlink_to("nowhere/at/all")
    (folder / "file").write_text("")
    for words in (
        ["pack", "images", "-o", "dangling"],
        ["index", "shards", "-o", "dangling"],
        ["index", "shards", "-o", "file"],
        ["index", "shards", "-o", "file/below"],
        ["filter", "index", "-o", "dangling/view.arrow"],
        ["filter", "index", "-o", "images"],
        ["report", "index", "-o", "nowhere/report.png"],
    ):
        assert words[-1].split("/")[0] in refused(capsys, *words)
