"""Tables that img2dataset leaves beside shards: their fields, what was not downloaded, and what is no such table."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jdiff.data import index
from jdiff.data.filter import Recipe, make_view
from tests.data import hostile

# As img2dataset 1.47 writes them: key, status, error_message and what it was given.
ROWS = [
    ("000000000", "success", None, "https://a.org/0.jpg", "caption of 0", 5.5, 100),
    ("000000001", "failed_to_download", "HTTP Error 404: Not Found", "https://a.org/1.jpg", "one", 1.0, None),
    ("000000002", "success", None, "https://b.org/2.jpg", "caption of 2", float("nan"), 300),
    ("000000003", "failed_to_resize", "Image decoding error", "https://b.org/3.jpg", "three", 2.0, None),
    ("000000004", "failed_to_download", "The read operation timed out", "https://c.org/4.jpg", "four", 3.0, None),
    ("000000005", "failed_to_download", "<urlopen error [Errno -2] c.org>", "https://c.org/5.jpg", "five", 4.0, None),
    ("000000006", "failed_to_download", "HTTP Error 404: Not Found", "https://a.org/6.jpg", None, 1.0, None),
    ("000000007", "success", None, "https://a.org/7.jpg", "", 1.0, 100),
]
NAMES = ("key", "status", "error_message", "url", "caption", "similarity", "original_width")


@pytest.fixture
def shard(tmp_path):
    groups = {
        "000000000": {"jpg": hostile.JPEG, "txt": b"caption of 0", "json": b'{"similarity": 6, "own": true}'},
        "000000002": {"jpg": hostile.JPEG},
        "000000007": {"jpg": hostile.JPEG, "txt": b""},
    }
    (tmp_path / "00000.tar").write_bytes(hostile.shard_of(groups))
    write(tmp_path, ROWS)
    return tmp_path / "00000.tar"


def write(folder, rows):
    table = {name: [row[n] for row in rows] for n, name in enumerate(NAMES)}
    table["when"] = [datetime.datetime(2024, 5, 1)] * len(rows)
    table["exif"] = [b"\xff"] * len(rows)
    pq.write_table(pa.table(table), folder / "00000.parquet")


def build(shard, name="index", **options):
    (part,) = index.build([str(shard)], shard.parent / name, max_reject_rate=1, **options)
    rows = pq.read_table(shard.parent / name / index.part_name(str(shard))).to_pylist()
    return part, {row["key"]: row for row in rows}


def test_fields_join_those_of_the_examples(shard):
    part, rows = build(shard)
    assert (part.seen, part.used, part.rejected) == (3, 2, {"empty caption": 1})
    first = {"status": "success", "url": "https://a.org/0.jpg", "caption": "caption of 0", "original_width": 100}
    # What the example's own record says stands.
    assert json.loads(rows["000000000"]["json"]) == first | {
        "similarity": 6,
        "own": True,
        "when": "2024-05-01 00:00:00",
    }
    assert "similarity" not in json.loads(rows["000000002"]["json"])
    assert rows["000000002"]["caption"] == "caption of 2"
    made = make_view(shard.parent / "index", shard.parent / "v.arrow", Recipe(where="original_width > 200"))
    assert made["rows"] == 1


def test_what_was_not_downloaded_is_counted_where_asked(shard):
    part, rows = build(shard, failed=True)
    assert part.rejected == {
        "empty caption": 1,
        "not downloaded: HTTP 404": 2,
        "not downloaded: timed out": 1,
        "not downloaded": 1,
        "not resized": 1,
    }
    assert part.seen == 8 == part.used + sum(part.rejected.values()) == len(rows)
    assert json.loads(rows["000000005"]["json"])["url"] == "https://c.org/5.jpg"
    assert make_view(shard.parent / "index", shard.parent / "v.arrow", Recipe())["rows"] == 2


def test_a_shard_is_read_again_when_its_table_or_the_question_changes(shard):
    told = []
    build_again = lambda **options: build(shard, progress=lambda part, *_: told.append(part.seen), **options)
    for options in ({}, {}, {"failed": True}, {"failed": True}):
        build_again(**options)
    assert told == [3, 8]
    write(shard.parent, ROWS[:4])
    build_again(failed=True)
    (shard.parent / "00000.parquet").unlink()
    build_again(failed=True)
    assert told == [3, 8, 5, 3]


@pytest.mark.parametrize("content", ["noise", "other columns"])
def test_what_is_no_such_table_is_named(shard, content):
    path = shard.parent / "00000.parquet"
    if content == "noise":
        path.write_bytes(b"PAR1 nothing PAR1")
    else:
        pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match=r"00000\.parquet, beside .*00000\.tar, must be a table with a column key"):
        build(shard)
