"""Latents and text embeddings as shards: what is in them, once a caption, on after a kill, and what is refused."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jdiff.data.buckets import crop
from jdiff.data.encode import claim, encode_images
from jdiff.data.encoded import Encoded
from jdiff.data.headers import RejectError
from jdiff.data.shards import Shards
from jdiff.data.view import View
from tests.data import slow_encode
from tests.data.test_view_stream import build

ROWS = 43


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return View(build(tmp_path_factory.mktemp("encode"), "plain", rows=ROWS))


@pytest.fixture(scope="module")
def encoded(view, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoded") / "out"
    assert slow_encode.run(view, out) == ({"encoded": ROWS}, {"captions": ROWS + 1})
    return out


def test_latents_are_those_of_the_centre_crops(view, encoded):
    opened, shards = Encoded(encoded), Shards(view.shards)
    assert len(opened) == ROWS and opened.plan["view"] == view.fingerprint
    numbers = slow_encode.SHAPES.assign(view.column("width"), view.column("height"))
    for number in range(ROWS):
        row = opened.row(number)
        assert row["row"] == number
        described = view.row(number)
        shown = crop(shards.read(described), slow_encode.SHAPES.shapes[numbers[number]], (0.5, 0.5), False)
        mean, std = opened.latents(number)
        expected, spread = slow_encode.moments(shown.image[None] / np.float32(127.5) - 1)
        assert mean.dtype == std.dtype == np.float16 and mean.shape == expected[0].shape
        np.testing.assert_allclose(mean, expected[0], atol=1e-3)
        np.testing.assert_allclose(std, spread[0], rtol=1e-3)
        assert (row["height"], row["width"]) == (described["height"], described["width"])
        assert (row["top"], row["left"]) == shown.corner and row["held_out"] == described["held_out"]
        assert row["caption"] == hashlib.sha256(described["caption"].encode()).digest()


def test_texts_are_found_by_caption_or_its_hash(view, encoded):
    opened = Encoded(encoded)
    for caption in ("", "plain 0", "plain 17"):
        by_hash = opened.text(hashlib.sha256(caption.encode()).digest())
        expected = slow_encode.letters([caption])
        assert opened.text(caption).keys() == by_hash.keys() == expected.keys()
        for name, array in opened.text(caption).items():
            np.testing.assert_allclose(array, expected[name][0], rtol=1e-3)
            np.testing.assert_array_equal(array, by_hash[name])
    with pytest.raises(KeyError):
        opened.text("of nobody")


def test_a_caption_is_encoded_once(tmp_path):
    view = View(build(tmp_path, "same", rows=20))
    view.row = lambda number, row=view.row: row(number) | {"caption": "the same" if number % 2 else "another"}
    seen = []
    letters = slow_encode.letters
    try:
        slow_encode.letters = lambda captions: seen.extend(captions) or letters(captions)
        _, texts = slow_encode.run(view, tmp_path / "out")
    finally:
        slow_encode.letters = letters
    assert texts == {"captions": 3} and sorted(seen) == ["", "", "another", "the same"]


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_command_goes_on(view, encoded, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-m", "tests.data.slow_encode", view.path, str(out), "0.1"])
    while len(list(out.glob("latents/*.tar"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match="is not encoded, or not to the end"):
        Encoded(out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("latents/*.tar")}
    (out / "latents" / "00099.tmp").write_bytes(b"half")
    assert slow_encode.run(view, out) == ({"encoded": ROWS}, {"captions": ROWS + 1})
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    (out / "latents" / "00099.tmp").unlink()
    assert content(out) == content(encoded)


def test_rows_that_cannot_be_encoded_are_counted(view, tmp_path):
    opened = View(build(tmp_path, "spoiled", rows=20))
    row = opened.row(3)
    with open(opened.shards[row["shard"]][0], "r+b") as file:
        file.seek(row["offset"] + 60)
        file.write(b"\0\1\2\3")
    images, texts = slow_encode.run(opened, tmp_path / "out", fits=lambda caption: caption != "spoiled 5")
    assert images == {"encoded": 19, "rejected: shard has changed": 1}
    assert texts == {"captions": 20, "rejected: caption does not fit": 1}
    encoded = Encoded(tmp_path / "out")
    assert [encoded.row(n)["row"] for n in range(len(encoded))] == [n for n in range(20) if n != 3]
    with pytest.raises(KeyError):
        encoded.text("spoiled 5")
    # Row 3 was rejected, so row 5 is the fifth.
    assert np.flatnonzero(~encoded.with_text()).tolist() == [4]
    claim(tmp_path / "huge", {})
    huge = lambda images: tuple(part * np.float32(1e6) for part in slow_encode.moments(images))
    told = encode_images(
        view, tmp_path / "huge", huge, slow_encode.SHAPES, batch_size=4, per_shard=8, progress=lambda *_: None
    )
    assert told == {"encoded": 0, "rejected: latents are not finite in float16": ROWS}


def test_what_does_not_belong_together_is_refused(view, encoded, tmp_path):
    out = shutil.copytree(encoded, tmp_path / "out")
    before = content(out)
    with pytest.raises(ValueError, match="differing in autoencoder, buckets, scaling, text, view"):
        claim(out, {"view": "another", "text": None})
    assert content(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ValueError, match="is not empty and holds nothing encoded"):
        claim(tmp_path / "other", {})
    with pytest.raises(ValueError, match="must be a folder"):
        claim(tmp_path / "other" / "thesis.txt", {})
    (out / "latents" / "00000.tar").unlink()
    with pytest.raises(RejectError, match="shard cannot be read"):
        Encoded(out).latents(next(n for n in range(ROWS) if Encoded(out).table["shard"][n].as_py() == 0))
    (out / "texts.arrow").write_bytes(b"")
    with pytest.raises(ValueError, match="is not encoded, or not to the end"):
        Encoded(out)
