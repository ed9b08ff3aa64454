"""Shards that hang: a pipe, a mount that does not answer, a store; none is waited for without an end."""

import errno
import os
import threading
import time

import pytest

from jdiff.data import index, patience
from jdiff.data.buckets import Buckets
from jdiff.data.reader import Reader
from jdiff.data.view import View
from jdiff.data.view_stream import ViewStream
from tests.data import hostile
from tests.data.test_view_stream import build


@pytest.fixture
def stuck(monkeypatch):
    """stuck(path): from now on, reads of that file block until the test ends, as those of a dead mount do."""
    released, asked = threading.Event(), []
    honest = {name: getattr(os, name) for name in ("pread", "preadv", "open")}
    names: set[str] = set()

    def opened(path, *rest, **options):
        if path in names:
            asked.append(path)
            released.wait(20)
        return honest["open"](path, *rest, **options)

    def uncached(*_):
        raise BlockingIOError(errno.EAGAIN, "not in memory")

    def read(file, *rest):
        if os.readlink(f"/proc/self/fd/{file}") in names:
            asked.append(file)
            released.wait(20)
        return honest["pread"](file, *rest)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "preadv", uncached)
    monkeypatch.setattr(os, "pread", read)
    monkeypatch.setattr(patience, "PATIENCE", 0.2)
    yield lambda path: names.add(str(path)) or asked
    released.set()


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    start = time.monotonic()
    with pytest.raises(OSError, match="no regular file"):
        Reader(str(tmp_path / "pipe.tar"))
    (part,) = index.build([str(tmp_path / "pipe.tar")], tmp_path / "index", max_reject_rate=1)
    assert part.rejected == {"shard cannot be read": 1} and time.monotonic() - start < 5


def test_a_read_that_hangs_is_given_up(tmp_path, stuck):
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(5000))
    with Reader(str(path)) as reader:
        assert reader.read(4000, 2000) == bytes(1000)
        stuck(path)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"a\.tar has not answered for 0\.2 seconds"):
            reader.read(0, 100)
        with pytest.raises(TimeoutError):
            Reader(str(path))
        assert time.monotonic() - start < 5
    # Others go on: threads that hang are left behind.
    (tmp_path / "b.tar").write_bytes(b"content")
    with Reader(str(tmp_path / "b.tar")) as reader:
        assert reader.read(0, 7) == b"content"


def test_a_shard_that_hangs_is_counted_in_an_index(tmp_path, stuck):
    names = [str(tmp_path / f"{name}.tar") for name in "ab"]
    for name in names:
        with open(name, "wb") as file:
            file.write(hostile.shard_of({"x": hostile.pair("jpg", hostile.JPEG)}))
    stuck(names[0])
    first, second = index.build(names, tmp_path / "index", max_reject_rate=1)
    assert (first.rejected, second.used) == ({"shard cannot be read": 1}, 1)


def test_training_goes_on_without_a_shard_that_hangs(tmp_path, stuck):
    view = build(tmp_path, "hangs", rows=40)
    asked = stuck(View(view).shards[1][0])
    start = time.monotonic()
    stream = ViewStream([(view, 1)], buckets=Buckets(size=32, step=32), batch_size=20, seed=0)
    batches = [stream.batch(0)]
    first = len(asked)
    batches += [stream.batch(step) for step in range(1, 4)]
    reasons = [reason for batch in batches for reason in batch["reject"].tolist()]
    assert reasons.count("shard cannot be read") == 40 and all((batch["row"] < 20).all() for batch in batches)
    # Asked for the rows of one batch, which are read at once, and not again.
    assert 1 <= len(asked) == first <= 20 and time.monotonic() - start < 10


def test_errors_are_passed_on_and_threads_used_again():
    def fail():
        raise KeyError("x")

    def threads():
        return sum(thread.name == "jdiff-patience" for thread in threading.enumerate())

    before = threads()
    for _ in range(20):
        with pytest.raises(KeyError):
            patience.within(fail, "it")
        assert patience.within(lambda: threading.current_thread().name, "it") == "jdiff-patience"
    assert threads() <= before + 1
