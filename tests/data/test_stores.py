"""Shards in a store: read by ranges, several at once, and whatever error the store has is a reason."""

import threading

import fsspec
import numpy as np
import pytest

from jdiff.data import Data, batches, index, open_source
from jdiff.data.filter import Recipe, make_view
from jdiff.data.reader import Reader
from tests.data.test_view_stream import BATCH, build, make


class Store(fsspec.get_filesystem_class("file")):
    """Local files behind "store://"; `called` runs in each read."""

    protocol = "store"
    called = staticmethod(lambda path: None)

    def cat_file(self, path, start=None, end=None, **options):
        self.called(path)
        return super().cat_file(path, start=start, end=end, **options)


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """The same rows as local files and in the store."""
    fsspec.register_implementation("store", Store, clobber=True)
    folder = tmp_path_factory.mktemp("stores")
    local = build(folder, "here")
    index.build([f"store://{folder}/here{part}.tar" for part in range(2)], folder / "far")
    make_view(folder / "far", folder / "far.arrow", Recipe())
    return local, folder / "far.arrow"


def test_a_batch_is_read_at_once_and_is_that_of_local_files(views, monkeypatch):
    local, far = map(make, views)
    # Each read waits until half of a batch is being read.
    barrier = threading.Barrier(BATCH // 2, timeout=20)
    monkeypatch.setattr(Store, "called", staticmethod(lambda path: barrier.wait()))
    for step in range(3):
        here, there = local.batch(step), far.batch(step)
        assert not there["reject"].astype(bool).any()
        np.testing.assert_array_equal(there["image"], here["image"])
        assert here["caption"].tolist() == there["caption"].tolist()


def test_so_is_a_batch_of_squares(views, monkeypatch):
    local, far = (open_source(Data(view=str(view), size=16), "train") for view in views)
    barrier = threading.Barrier(BATCH // 2, timeout=20)
    monkeypatch.setattr(Store, "called", staticmethod(lambda path: barrier.wait()))
    here, there = (batches(source, batch_size=BATCH, seed=1, flip=False)[2] for source in (local, far))
    np.testing.assert_array_equal(there["image"], here["image"])
    monkeypatch.undo()
    for row, one in zip((5, 0, 7), far.many(np.array([5, 0, 7])), strict=True):
        np.testing.assert_array_equal(one["image"], local[row]["image"])
        assert one["caption"] == local[row]["caption"]


def test_errors_of_a_store_are_reasons(views, tmp_path, monkeypatch):
    def fail(path):
        if path.endswith("here1.tar"):
            raise RuntimeError("503")

    monkeypatch.setattr(Store, "called", staticmethod(fail))
    far = make(views[1])
    found = [far.batch(step) for step in range(4)]
    assert {*np.concatenate([batch["reject"] for batch in found]).tolist()} == {"", "shard cannot be read"}
    shard = f"store://{views[0].parent}/here1.tar"
    with pytest.raises(OSError, match=r"here1\.tar cannot be read: RuntimeError: 503"):
        Reader(shard).read(0, 10)
    (part,) = index.build([shard], tmp_path / "index", max_reject_rate=1)
    assert part.rejected == {"shard cannot be read": 1}
