"""Views: SQL over an index, what is recorded of it, weights, opt-outs, caption repair, and hostile conditions."""

import json
import threading

import numpy as np
import pytest

from jdiff.data import captions, index
from jdiff.data.filter import Recipe, make_view
from jdiff.data.view import View
from tests.data import hostile

RECORDS = [
    {"aesthetic": 6.5, "nsfw": False, "url": "https://images.example.com/a.jpg"},
    {"aesthetic": 3, "nsfw": True, "url": "http://other.org/b.jpg"},
    {"aesthetic": float("nan"), "nsfw": False, "url": "https://example.com.evil.net/c.jpg", "note": "a\0b"},
    {"aesthetic": 8, "nsfw": None, "caption": "not the caption", 'odd "name"': 1},
    {"nsfw": False},
]


@pytest.fixture
def indexed(tmp_path):
    groups = {
        str(n): {
            "png": hostile.encoded(hostile.smooth(40 + 8 * n, 48), "PNG"),
            "txt": f"caption <b>{n}</b>".encode(),
            "json": json.dumps(record).encode(),
        }
        for n, record in enumerate(RECORDS)
    }
    (tmp_path / "a.tar").write_bytes(hostile.shard_of(groups | {"bad": {"png": b"", "txt": b"x"}}))
    index.build([str(tmp_path / "a.tar")], tmp_path / "index")
    return tmp_path / "index"


def keys(indexed, **recipe):
    out = indexed.parent / "view.arrow"
    made = make_view(indexed, out, Recipe(**recipe))
    view = View(out)
    assert made["rows"] == len(view) and made["fingerprint"] == view.fingerprint
    return [view.row(n)["key"] for n in range(len(view))]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("true", "01234"),
        ("width >= 56", "234"),
        ("aesthetic > 5", "03"),
        ("aesthetic > 5 and not nsfw", "0"),
        ("nsfw is null", "3"),
        ("aesthetic is null", "24"),
        ("key in ('1', 'bad') -- a comment", "1"),
        ("caption like '%2%'", "2"),
        ("format = 'PNG' and thumbnail is not null and octet_length(sha256) = 32", "01234"),
    ],
)
def test_conditions(indexed, where, expected):
    assert keys(indexed, where=where) == list(expected)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("widht > 3", "widht.*the columns are shard, key"),
        ("width >", "yntax"),
        ("false", "chooses none of the 5 rows"),
        ("true); COPY (SELECT 1) TO 'stolen.csv'; SELECT (true", "COPY|permission|disabled|yntax"),
        ("exists (select * from read_text('/etc/hostname'))", "ermission|disabled"),
        ("exists (select * from read_csv('https://example.com/x.csv'))", "ermission|disabled"),
    ],
)
def test_conditions_that_do_not_fit_or_reach_out(indexed, where, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        keys(indexed, where=where)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "index"]


def test_what_does_not_fit_into_memory_is_sorted_in_files(indexed, monkeypatch):
    """Beside the view, while it is made."""
    monkeypatch.setattr("jdiff.data.filter._MEMORY", "40MB")
    monkeypatch.setattr("jdiff.data.filter._THREADS", 1)
    done, seen = threading.Event(), set()

    def watch():
        while not done.wait(0.01):
            seen.update(path.parent.name for path in indexed.parent.glob("*/duckdb*"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        sort = "select row_number() over (order by hash(range)) n from range(2000000)"
        assert keys(indexed, where=f"(select max(n) from ({sort})) = 2000000") == list("01234")
    finally:
        done.set()
        watcher.join()
    assert [name.startswith("view.arrow.") for name in seen] == [True]
    assert sorted(path.name for path in indexed.parent.iterdir()) == ["a.tar", "index", "view.arrow"]


def test_rows_hold_what_reading_needs(indexed):
    keys(indexed)
    view = View(indexed.parent / "view.arrow")
    for number in range(len(view)):
        row = view.row(number)
        shard, _ = view.shards[row["shard"]]
        with open(shard, "rb") as file:
            file.seek(row["offset"])
            assert file.read(row["size"]) == hostile.encoded(hostile.smooth(40 + 8 * number, 48), "PNG")
        assert (row["width"], row["height"], row["caption"]) == (40 + 8 * number, 48, f"caption <b>{number}</b>")
    np.testing.assert_array_equal(view.column("width"), 40 + 8 * np.arange(5))


def test_rows_together_are_rows_one_by_one(indexed, monkeypatch):
    for name in ("filter.CHUNK", "filter._SOME", "view.CHUNK"):
        monkeypatch.setattr(f"jdiff.data.{name}", 2)
    keys(indexed, tags="key")
    view = View(indexed.parent / "view.arrow")
    numbers = np.array([4, 0, 3, 3, 1, 2])
    assert view.rows(numbers) == [view.row(number) for number in numbers]
    assert [row["key"] for row in view.rows(numbers, ("key",))] == list("403312")


def test_fingerprints_follow_index_and_recipe(indexed, tmp_path):
    marks = [
        make_view(indexed, tmp_path / f"{n}.arrow", Recipe(**recipe))["fingerprint"]
        for n, recipe in enumerate([{}, {}, {"where": "width > 40"}, {"weight": "width"}, {"repairs": ("html",)}])
    ]
    assert marks[0] == marks[1] and len(set(marks)) == 4
    (tmp_path / "b.tar").write_bytes(hostile.shard_of({"b": hostile.pair("jpg", hostile.JPEG)}))
    index.build([str(tmp_path / "b.tar")], indexed)
    assert make_view(indexed, tmp_path / "c.arrow", Recipe())["fingerprint"] not in marks


def test_weights(indexed):
    assert keys(indexed, weight="coalesce(aesthetic, 0)") == ["0", "1", "3"]
    np.testing.assert_allclose(View(indexed.parent / "view.arrow").column("weight"), [6.5, 3, 8])
    for weight in ("aesthetic", "-1", "1e308 * 10", "'heavy'"):
        with pytest.raises(ValueError, match="weight"):
            keys(indexed, weight=weight)


def test_opted_out_rows_are_left_out(indexed):
    import hashlib

    digest = hashlib.sha256(hostile.encoded(hostile.smooth(72, 48), "PNG")).hexdigest()
    assert keys(indexed, opt_out=("EXAMPLE.com",)) == list("1234")
    assert keys(indexed, opt_out=("http://other.org/b.jpg", "", digest)) == list("023")


def test_captions_are_repaired(indexed):
    keys(indexed, repairs=("html",))
    assert View(indexed.parent / "view.arrow").row(2)["caption"] == "caption 2"
    with pytest.raises(ValueError, match="html, file_names, boilerplate; got 'spelling'"):
        keys(indexed, repairs=("spelling",))


def test_what_is_no_view_is_refused(tmp_path):
    for content in (None, b"", b"ARROW1\0\0 and nothing else"):
        if content is not None:
            (tmp_path / "x.arrow").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.arrow cannot be read"):
            View(tmp_path / "x.arrow")


@pytest.mark.parametrize(
    ("rule", "caption", "expected"),
    [
        ("html", "A&amp;B <b>cat</b>\n<br/> sits", "A&B cat sits"),
        ("html", "1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("file_names", "IMG_2034.JPG", ""),
        ("file_names", "DSC00123", ""),
        ("file_names", "2019-05-04 12.33.10", ""),
        ("file_names", "red_fox-in-snow.jpg", "red fox in snow"),
        ("file_names", "a red fox in 2019", "a red fox in 2019"),
        ("file_names", "see fox.jpg for more", "see fox.jpg for more"),
        ("boilerplate", "Red fox - Royalty Free Stock Photo", "Red fox"),
        ("boilerplate", "Red fox | stock photo", "Red fox"),
        ("boilerplate", "A stock photo of a fox", "A stock photo of a fox"),
        ("boilerplate", "stock photo", ""),
    ],
)
def test_repairs(rule, caption, expected):
    assert captions.repair(caption, [rule]) == expected


@pytest.mark.parametrize("rule", captions.REPAIRS)
@pytest.mark.parametrize("piece", [" ", "<", "<b>", "&", "stock photo ", "(", ".jpg", "IMG_1 ", "- ", "\u2014"])
def test_repairs_take_no_time_on_long_captions(rule, piece):
    import time

    start = time.process_time()
    captions.repair(piece * (2**14 // len(piece)), [rule])
    assert time.process_time() - start < 0.5


def test_dropout_and_swaps_are_functions_of_row_and_seed():
    dropped = [captions.drop("a fox", row, 3, 0.2) == "" for row in range(4000)]
    assert dropped == [captions.drop("another", row, 3, 0.2) == "" for row in range(4000)]
    assert abs(np.mean(dropped) - 0.2) < 4 * np.sqrt(0.16 / 4000)
    assert 0.2 < np.mean(np.array(dropped) != [captions.drop("a", row, 4, 0.2) == "" for row in range(4000)]) < 0.45
    swapped = [captions.swap("A man and the man's manual", row, 0, ["man", "woman"]) for row in range(400)]
    assert set(swapped) == {"A man and the man's manual", "A woman and the woman's manual"}
    assert 140 < sum("woman" in caption for caption in swapped) < 260
