"""Wrong input: one line that names it, exit status 2, and nothing is overwritten."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jdiff import cli
from tests import recipe


def content(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_wrong_words(refused, tmp_path):
    for words, message in [
        (["--stepss", 3], "Unrecognized options: --stepss"),
        (["--steps", "many"], "Error parsing --steps: invalid literal for int() with base 10: 'many'"),
        (["--data.subset", "boats"], "--data.subset"),
        (["--process", "Nope"], "--process must be one of VP, VE, EDM, RectifiedFlow, SubVP, Cosine, got Nope"),
        (["--process", "RectifiedFlow"], "EDMPreconditioning cannot be used with RectifiedFlow"),
        (["--data.size", 10], "size: 10 is not a positive multiple of 4"),
        (["--batch-size", 12], "batch_size 12 must be a multiple of the 8 slices of data x fsdp"),
        (["--optimizer.clip", -1], "optimizer.clip must be positive, got -1.0"),
        (["--data.folder", "missing"], "folder missing does not exist"),
    ]:
        assert message in refused("train", recipe.__file__, *words, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert "there is no verb 'trian'" in refused("trian")
    assert "recipe none.py does not exist" in refused("train", "none.py")


def test_folders_that_cannot_be_read(refused, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    command = ("train", recipe.__file__, "--data.folder", folder, "--out", out)
    assert str(folder) in refused(*command)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no picture")
    assert "bad.png" in refused(*command)
    assert not out.exists()


def test_another_config_in_the_same_directory(refused, finished):
    before = content(finished)
    assert "holds a run of another config" in refused("train", recipe.__file__, "--seed", 1, "--out", finished)
    assert content(finished) == before
    (finished / "config.json").write_text('{"name": 3}')
    assert "config.json: config: unknown" in refused("train", recipe.__file__, "--out", finished)
    shutil.rmtree(finished)
    finished.mkdir()
    (finished / "thesis.txt").write_text("do not touch")
    assert "is not a run directory" in refused("train", recipe.__file__, "--out", finished)
    assert [path.name for path in finished.iterdir()] == ["thesis.txt"]


def test_a_kill_before_the_config_was_written_is_no_obstacle(tmp_path):
    for leftovers in ([], ["manifest.json"], ["manifest.json", ".config.json.tmp"]):
        out = tmp_path / str(len(leftovers))
        out.mkdir()
        for name in leftovers:
            (out / name).write_text("{")
        cli.main(["train", recipe.__file__, "--steps", "2", "--out", str(out)])
        assert json.loads((out / "manifest.json").read_text())["seed"] == 0


def test_data_that_has_changed(refused, finished):
    path = finished / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["data"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert "has changed since it was started" in refused("train", recipe.__file__, "--out", finished)
    assert "has changed since it was started" in refused("evaluate", finished)


def test_a_damaged_checkpoint(finished, capsys):
    """Whoever looks at a run takes the newest that is whole, and is told; where none is, the last is named."""

    def spoil(step):
        for victim in (finished / "checkpoints" / str(step) / "state").rglob("*"):
            if victim.is_file() and victim.parent.name == "d":
                victim.write_bytes(victim.read_bytes()[:10])

    spoil(24)
    before = content(finished)
    cli.main(["sample", str(finished), "--n", "1", "--out", str(finished.parent / "drawn"), "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["step"] == 20
    assert f"passed over: checkpoint {finished / 'checkpoints' / '24'} is damaged: " in err
    assert content(finished) == before
    for step in (20, 16):
        spoil(step)
    with pytest.raises(SystemExit):
        cli.main(["sample", str(finished), "--out", str(finished.parent / "other")])
    assert f"jdiff: checkpoint {finished / 'checkpoints' / '16'} is damaged" in capsys.readouterr().err
    assert not (finished.parent / "other").exists()


def test_a_checkpoint_of_another_network(refused, finished, tmp_path):
    other = tmp_path / "other"
    cli.main(["train", recipe.__file__, "--network.num-layers", "2", "--out", str(other)])
    shutil.rmtree(finished / "checkpoints" / "24")
    shutil.copytree(other / "checkpoints" / "24", finished / "checkpoints" / "24")
    before = content(finished)
    line = refused("train", recipe.__file__, "--out", finished)
    assert "belongs to another network" in line and "bias is (2, 16) there and (1, 16) here" in line and "more" in line
    assert content(finished) == before


def test_sampling_what_is_not_there(refused, finished, tmp_path):
    assert "is not a run directory" in refused("sample", tmp_path / "nothing")
    assert "class 'boat' is none of these" in refused("sample", finished, "--class", "boat")
    assert "solver must be one of" in refused("sample", finished, "--solver", "rk9")
    assert "--n must be at least 1, got 0" in refused("sample", finished, "--n", 0)
    assert "n must be between 2 and the 135 training images" in refused("evaluate", finished, "--n", 1000)
    shutil.rmtree(finished / "checkpoints")
    assert "has no checkpoint yet" in refused("sample", finished)
    assert not (finished / "draws").exists()


def test_a_reader_that_has_seen_enough(finished):
    """`jdiff info RUN | head -1`: no complaint."""
    code = "from jdiff.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "info", str(finished)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(120) == 1


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="is not a run directory"):
        cli.main(["sample", str(tmp_path), "--debug"])
