"""Shards that changed since they were indexed: never trained on in silence."""

import json
import os

import numpy as np
import pytest

from jdiff import cli
from jdiff.data import Data, Replaced, batches, index, open_source, training_batches
from jdiff.data.buckets import Buckets
from jdiff.data.filter import Recipe, make_view
from jdiff.data.view_stream import ViewStream
from tests import recipe
from tests.data import hostile


def shard(path, value, examples=20):
    groups = {
        f"{path.stem}{n:02}": hostile.pair("png", hostile.encoded(np.full((8, 8, 3), value, np.uint8), "PNG"))
        for n in range(examples)
    }
    path.write_bytes(hostile.shard_of(groups))


@pytest.fixture(params=["headers", "bytes"])
def view(tmp_path, request):
    """Of two shards, one of which was replaced by another of the same size."""
    for name in "ab":
        shard(tmp_path / f"{name}.tar", 50)
    index.build([str(tmp_path / f"{name}.tar") for name in "ab"], tmp_path / "index", depth=request.param)
    make_view(tmp_path / "index", tmp_path / "view.arrow", Recipe())
    before = os.stat(tmp_path / "b.tar")
    shard(tmp_path / "b.tar", 90)
    assert os.stat(tmp_path / "b.tar").st_size == before.st_size
    return tmp_path / "view.arrow"


def test_new_bytes_are_never_used_under_an_old_row(view):
    stream = ViewStream([(view, 1)], buckets=Buckets(size=8, step=8), batch_size=8, seed=0)
    source = open_source(Data(view=str(view), size=8), "train")
    for step in range(4):
        for batch in (stream.batch(step), batches(source, batch_size=8, seed=0, flip=False)[step]):
            assert set(batch["reject"].tolist()) == {"", "shard has changed"}
            np.testing.assert_allclose(batch["image"], 50 / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("bucket_step", [None, 8])
def test_a_run_stops_above_the_rate_and_says_why(view, bucket_step):
    data = Data(view=str(view), size=8, bucket_step=bucket_step, flip=False)
    source = open_source(data, "train")
    replaced = Replaced(0.9)
    stream = training_batches(data, source, batch_size=8, seed=0, start=3, put=dict, replaced=replaced)
    found = [next(stream)["reject"] for _ in range(3)]
    count = sum(int((part != "").sum()) for part in found)
    assert replaced.metrics(3) == {}
    assert replaced.metrics(6) == {"replaced": count, "replaced: shard has changed": count}
    assert not replaced.metrics(6)
    said = r"rows could not be read and were replaced, more than data.max_replaced 0.05 allows: shard has changed \d+;"
    with pytest.raises(ValueError, match=said):
        for _ in training_batches(data, source, batch_size=8, seed=0, start=0, put=dict):
            pass


def test_a_touched_shard_with_digests_is_the_same(tmp_path):
    for depth in ("headers", "pixels"):
        shard(tmp_path / "a.tar", 50)
        index.build([str(tmp_path / "a.tar")], tmp_path / depth, depth=depth)
        make_view(tmp_path / depth, tmp_path / f"{depth}.arrow", Recipe())
        os.utime(tmp_path / "a.tar", (1, 1))
        source = open_source(Data(view=str(tmp_path / f"{depth}.arrow"), size=8), "train")
        if depth == "pixels":
            assert source[0]["reject"] == ""
        else:
            with pytest.raises(ValueError, match=r"cannot be read: shard has changed; the last was of .*a\.tar"):
                source[0]


def test_a_shard_with_a_table_beside_it_is_unchanged(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard(tmp_path / "a.tar", 50)
    pq.write_table(pa.table({"key": ["a00"], "status": ["success"]}), tmp_path / "a.parquet")
    index.build([str(tmp_path / "a.tar")], tmp_path / "index", depth="headers")
    make_view(tmp_path / "index", tmp_path / "view.arrow", Recipe())
    assert open_source(Data(view=str(tmp_path / "view.arrow"), size=8), "train")[0]["reject"] == ""


def test_rates():
    replaced = Replaced(0.1)
    for step in range(100):
        replaced.add(step, ["gone", *[""] * 9])  # at the limit
    assert replaced.metrics(1) == {"replaced": 1, "replaced: gone": 1}
    assert replaced.metrics(200)["replaced"] == 99
    with pytest.raises(ValueError, match=r"\d+ of \d+ rows .*: gone 100, other \d+;"):
        for step in range(100, 200):
            replaced.add(step, ["other"] * 10)
    with pytest.raises(ValueError, match="1 of 10 rows"):
        Replaced(0).add(0, ["gone", *[""] * 9])
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="max_replaced must be in"):
            Data(view="x", max_replaced=share)


def test_metrics_of_a_run_say_how_many_rows_were_replaced_and_why(view, tmp_path):
    """Its loss is still of whole batches."""
    words = [
        "train",
        recipe.__file__,
        "--data.view",
        view,
        "--data.max-replaced",
        "1",
        "--steps",
        "4",
        "--log-every",
        "2",
    ]
    cli.main([*map(str, words), "--out", str(tmp_path / "run")])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert 0 < line["replaced"] == line["replaced: shard has changed"]
        assert np.isfinite(line["loss"])
