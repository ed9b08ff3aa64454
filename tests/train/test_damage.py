"""Files of a checkpoint that are not what they were: named, passed over, and never taken for another state."""

import collections
import json
import random
import shutil

import jax
import numpy as np
import pytest

from jdiff.train import checkpoint
from jdiff.train.checkpoint import Checkpoints
from jdiff.train.description import DamagedError
from jdiff.train.keep import Keep
from tests.fuzz.fuzz_checkpoints import STEPS, check, saved, state

ABSTRACT = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "whole"
    saved(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoints")


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def as_folder(path):
    path.unlink()
    path.mkdir()


def flip(path, rng=None):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data)) if rng else len(data) // 2] ^= 1 << (rng.randrange(8) if rng else 2)
    path.write_bytes(data)


DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": as_folder,
    "flipped": flip,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_file_of_a_checkpoint(folder, kind):
    newest = folder / str(STEPS[-1])
    assert len(files_of(newest)) > 5
    for path in files_of(newest):
        data = path.read_bytes()
        if not data and kind not in ("deleted", "a folder"):
            continue  # Orbax's marker has no bytes
        DAMAGE[kind](path)
        told = []
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.newest(ABSTRACT, told.append)[0] == STEPS[0], path
        assert len(told) == 1 and f"checkpoint {newest} is damaged: {path}" in told[0].replace(
            "checkpoint.json has not", f"{path} has not"
        ), told
        path.rmdir() if path.is_dir() else None
        path.write_bytes(data)
    assert check(folder, "mended") == "read"


def test_four_hundred_flips_of_a_bit_in_the_small_files(whole, tmp_path):
    counts = collections.Counter()
    for number in range(400):
        rng = random.Random(number)
        folder = shutil.copytree(whole, tmp_path / "checkpoints")
        path = rng.choice([path for path in files_of(folder / str(STEPS[-1])) if path.stat().st_size])
        flip(path, rng)
        counts[check(folder, f"flip {number} in {path.name}")] += 1  # whatever is read is what was saved
        shutil.rmtree(folder)
    assert counts["refused"] > 390, counts  # white space of checkpoint.json alone may be anything


def test_a_copy_under_another_step_is_not_of_that_step(folder):
    shutil.copytree(folder / "20", folder / "30")
    told = []
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.newest(ABSTRACT, told.append)[0] == 20
        with pytest.raises(DamagedError, match="30 is not of step 30: it is a copy of that of step 20"):
            checkpoints.restore(30, ABSTRACT)
    assert "30 is not of step 30" in told[0]


def test_another_version_is_believed_only_where_it_is_proved(folder, monkeypatch):
    """By an intact description: one digit changed is damage, and does not stop a run."""

    path = folder / "20" / "checkpoint.json"
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 2'))
    told = []
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.newest(ABSTRACT, told.append)[0] == 10
    assert "has not the checksum" in told[0]
    monkeypatch.setattr(checkpoint, "_SCHEMA", 4)
    with Checkpoints(folder) as checkpoints, pytest.raises(ValueError, match=r"has schema 3 .* this version reads 4"):
        checkpoints.restore(10, ABSTRACT)


def test_a_checkpoint_that_is_removed_while_it_is_read_is_no_damage(folder, monkeypatch):
    """As the run that goes on does: the next is taken, and nothing is told."""
    restore = Checkpoints.restore

    def late(self, step, abstract):
        if step == 20:
            shutil.rmtree(folder / "20")
        return restore(self, step, abstract)

    monkeypatch.setattr(Checkpoints, "restore", late)
    told = []
    with Checkpoints(folder) as checkpoints:
        step, read = checkpoints.newest(ABSTRACT, told.append)
    assert step == 10 and told == []
    np.testing.assert_array_equal(read.params["layer"]["kernel"], state(10).params["layer"]["kernel"])


def test_what_an_interrupted_save_leaves_is_removed_by_the_next_writer_alone(folder):

    for name in ("30.saving", "30.removed", "30.saving.orbax-checkpoint-tmp-1"):
        shutil.copytree(folder / "20", folder / name)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps == [10, 20]
    assert len(list(folder.iterdir())) == 5
    with Checkpoints(folder, Keep(latest=1)) as checkpoints:
        checkpoints.save(30, state(30), "12345678")
    assert [path.name for path in folder.iterdir()] == ["30"]


def test_a_checkpoint_from_before_there_was_a_description(folder):
    """Its arrays have a digest in Orbax's own file."""

    for step in STEPS:
        about = json.loads((folder / str(step) / "checkpoint.json").read_text())
        path = folder / str(step) / "_CHECKPOINT_METADATA"
        before = {name: about[name] for name in ("schema", "experiment", "digest")}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": before}))
        (folder / str(step) / "checkpoint.json").unlink()
    assert check(folder, "from before") == "read"
    shutil.rmtree(folder / "10")
    shutil.copytree(folder / "20", folder / "10")
    with Checkpoints(folder) as checkpoints, pytest.raises(DamagedError, match="copy of that of step 20"):
        checkpoints.restore(10, ABSTRACT)
