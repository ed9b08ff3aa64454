"""The report of an index: figures that are counted by hand, and a picture that is drawn."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from jdiff.data import index
from jdiff.data.dedup import deduplicate
from jdiff.data.filter import Recipe, make_view
from jdiff.data.report import draw, report, told_of_view
from tests.data import hostile

RECORDS = [
    {"url": "https://a.org/1.png", "license": "CC0"},
    {"url": "https://a.org/2.png"},
    {"url": "http://[broken", "license": None},
    {},
]


def test_figures_and_picture(tmp_path):
    groups = {
        str(n): {
            "png": hostile.encoded(hostile.smooth(40 * (n + 1), 40), "PNG"),
            "txt": b"x" * (n + 1),
            "json": json.dumps(record).encode(),
        }
        for n, record in enumerate(RECORDS)
    }
    groups["copy"] = groups["3"] | {"txt": b"xxxx"}
    (tmp_path / "a.tar").write_bytes(hostile.shard_of(groups | {"bad": {"jpg": b"<html>", "txt": b"x"}}))
    index.build([str(tmp_path / "a.tar")], tmp_path / "index")
    assert report(tmp_path / "index")["duplicates"] is None
    deduplicate(tmp_path / "index", distance=-1)
    figures = report(tmp_path / "index")
    assert (figures["seen"], figures["used"]) == (6, 5)
    assert figures["rejected"] == {"text instead of an image": 1} and figures["formats"] == {"PNG": 5}
    assert figures["domains"] == {"a.org": 2, "": 3} and figures["licences"] == {"CC0": 1, "": 4}
    assert figures["width"]["median"] == 120 and figures["aspect_ratio"]["most"] == 4
    assert figures["caption_letters"]["least"] == 1 and figures["duplicates"]["exact"] == 1
    draw(figures, tmp_path / "report.png")
    drawn = np.asarray(Image.open(tmp_path / "report.png").convert("RGB"))
    colours = {tuple(colour) for colour in drawn.reshape(-1, 3)[::7].tolist()}
    assert {(31, 119, 180), (255, 127, 14)} <= colours


def test_an_index_of_rejects_alone_is_drawn(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    index.build([str(tmp_path / "a.tar")], tmp_path / "index", max_reject_rate=1)
    figures = report(tmp_path / "index")
    assert (figures["seen"], figures["used"], figures["rejected"]) == (1, 0, {"empty shard": 1})
    draw(figures, tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_the_list_of_opt_outs_that_was_applied_is_stated(tmp_path):
    groups = {
        str(n): hostile.pair("png", hostile.encoded(hostile.smooth(40, 40 + n), "PNG"))
        | {"json": json.dumps({"url": f"https://{'ab'[n % 2]}.org/{n}"}).encode()}
        for n in range(6)
    }
    (tmp_path / "a.tar").write_bytes(hostile.shard_of(groups))
    index.build([str(tmp_path / "a.tar")], tmp_path / "index")
    lines = ("a.org", "https://b.org/3")
    make_view(tmp_path / "index", tmp_path / "v.arrow", Recipe(opt_out=lines, where="height > 40"))
    make_view(tmp_path / "index", tmp_path / "w.arrow", Recipe())
    figures = report(tmp_path / "index", tmp_path / "v.arrow")
    mark = hashlib.sha256(repr(sorted(lines)).encode()).hexdigest()
    assert figures["view"]["opt_out"] == {"lines": 2, "sha256": mark}
    assert figures["view"]["counts"] == {"rows": 2, "recaptioned": 0, "rejected: opted out": 3}
    words = told_of_view(figures["view"])
    assert "2 rows where height > 40" in words and f"2 lines, SHA-256 {mark[:16]}, left out 3 rows" in words
    assert "opt-out list: none applied" in told_of_view(report(tmp_path / "index", tmp_path / "w.arrow")["view"])
    draw(figures, tmp_path / "with.png")
    draw(figures | {"view": None}, tmp_path / "without.png")
    top = [np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))[:30] for name in ("with", "without")]
    assert (top[0] < 128).sum() > (top[1] < 128).sum() + 100
    (tmp_path / "b.tar").write_bytes(hostile.shard_of({"b": hostile.pair("jpg", hostile.JPEG)}))
    index.build([str(tmp_path / "b.tar")], tmp_path / "index")
    with pytest.raises(ValueError, match="of this one before it changed"):
        report(tmp_path / "index", tmp_path / "v.arrow")
