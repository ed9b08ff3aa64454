"""Where the time of a run went, from lines as three processes leave them."""

import json

import pytest

from jdiff.train.goodput import BUCKETS, Goodput, spent, told


def line(process, start, number, **seconds):
    zeros = dict.fromkeys(BUCKETS[:-1], 0.0)
    return {"step": number, "process": process, "from": start, "seconds": zeros | seconds}


def test_what_is_done_twice_was_lost(tmp_path):
    path = tmp_path / "throughput.jsonl"
    lines = [
        line(1.0, 0, 10, init=5.0, step=10.0),
        line(1.0, 0, 20, init=5.0, step=20.0),
        line(1.0, 0, 30, init=5.0, step=30.0, pictures=2.0),  # then a kill; the checkpoint was of step 20
        line(2.0, 20, 25, init=3.0, step=5.0),  # a kill before any checkpoint
        line(3.0, 20, 30, init=4.0, step=10.0),
        line(3.0, 20, 40, init=4.0, step=20.0),
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in lines) + '{"step": 50, "proc')
    seconds = spent(path)
    assert seconds == {
        "init": 5.0 + 4.0, "compile": 0.0, "data": 0.0, "step": 20.0 + 20.0, "checkpoint": 0.0, "eval": 0.0,
        "pictures": 0.0, "lost": 10.0 + 2.0 + 3.0 + 5.0,
    }  # fmt: skip
    assert sum(seconds.values()) == 37.0 + 8.0 + 24.0
    assert told(seconds) == "goodput 58% of 69.0 s (seconds: init 9.0, lost 20.0)"


def test_buckets_count_by_the_clock(tmp_path):
    goodput = Goodput()
    with pytest.raises(KeyError), goodput.of("tea"):
        pass
    with goodput.of("data"):
        pass
    assert 0 <= goodput.line()["seconds"]["data"] < 1 and goodput.line()["from"] == 0
    assert spent(tmp_path / "none.jsonl") == dict.fromkeys(BUCKETS, 0.0)
