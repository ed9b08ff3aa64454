"""Building an index: it grows, goes on where it stopped, sees what changed, and stops where too much is rejected."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from jdiff.data import index
from jdiff.data.pack import pack
from tests.data import hostile


def shard(folder, name, examples=4, bad=0, **fields):
    """A shard of good examples, and then some of zero bytes."""
    record = json.dumps(fields).encode()
    groups = {
        f"{name}{n}": {"jpg": hostile.JPEG if n < examples else b"", "txt": f"caption {n}".encode(), "json": record}
        for n in range(examples + bad)
    }
    path = folder / f"{name}.tar"
    path.write_bytes(hostile.shard_of(groups))
    return str(path)


def test_an_index_grows_and_reads_nothing_twice(tmp_path):
    out, told = tmp_path / "index", []
    tell = lambda part, done, total: told.append(os.path.basename(part.shard))
    a, b, c = (shard(tmp_path, name) for name in "abc")
    index.build([a, b], out, progress=tell)
    index.build([c, a, b], out, progress=tell)
    assert told == ["a.tar", "b.tar", "c.tar"]
    together = index.fingerprint(index.parts_of(out).values())
    index.build([a, b, c], tmp_path / "other")
    assert index.fingerprint(index.parts_of(tmp_path / "other").values()) == together
    os.utime(b)
    shard(tmp_path, "c", examples=5)
    index.build([a, b, c], out, progress=tell)
    assert told[3:] == ["b.tar", "c.tar"]
    assert index.fingerprint(index.parts_of(out).values()) != together


def test_two_processes_write_the_same_index(tmp_path):
    shards = [shard(tmp_path, name, examples=9, bad=1) for name in "abcd"]
    one = index.build(shards, tmp_path / "one")
    two = index.build(shards, tmp_path / "two", workers=2)
    assert one == two
    for path in index.parts_of(tmp_path / "one"):
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "two" / path.name))


def test_headers_need_few_bytes(tmp_path):
    name = shard(tmp_path, "big", examples=0)
    picture = hostile.encoded(np.random.default_rng(1).integers(0, 256, (384, 512, 3), np.uint8), "PNG")
    (tmp_path / "big.tar").write_bytes(hostile.shard_of({str(n): hostile.pair("png", picture) for n in range(5)}))
    (part,) = index.build([name], tmp_path / "index", depth="headers")
    assert len(picture) > 100_000 and part.bytes_read < 5 * 6000 + 4096
    (row, *_) = pq.read_table(tmp_path / "index" / index.part_name(name)).to_pylist()
    assert (row["format"], row["width"], row["height"], row["sha256"]) == ("PNG", 512, 384, None)


def test_too_many_rejected_stops_and_names_the_shard(tmp_path):
    good = shard(tmp_path, "good", examples=100)
    bad = shard(tmp_path, "half", examples=20, bad=80)
    with pytest.raises(ValueError, match=r"80 of 200 examples .*half\.tar, has 80 of 100: empty image 80"):
        index.build([good, bad], tmp_path / "index")
    index.build([good, bad], tmp_path / "index", max_reject_rate=0.4)


def test_a_shard_that_vanishes_is_counted(tmp_path, monkeypatch):
    a, b = shard(tmp_path, "a"), shard(tmp_path, "b")
    tell = lambda part, done, total: os.path.exists(b) and os.remove(b)
    first, second = index.build([a, b], tmp_path / "index", max_reject_rate=1, progress=tell)
    assert (first.used, second.seen, second.rejected) == (4, 1, {"shard cannot be read": 1})


def test_a_shard_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    a = shard(tmp_path, "a")
    honest = index.read_header

    def meddle(file):
        with open(a, "ab") as grown:
            grown.write(bytes(512))
        return honest(file)

    monkeypatch.setattr(index, "read_header", meddle)
    (part,) = index.build([a], tmp_path / "index", max_reject_rate=1)
    assert part.rejected == {"shard changed while it was read": 1}
    monkeypatch.undo()
    (part,) = index.build([a], tmp_path / "index")
    assert part.used == 4


def test_a_store_that_times_out_is_counted(tmp_path):
    class Slow(fsspec.get_filesystem_class("memory")):
        protocol = "slow"

        def info(self, path, **options):
            return {"size": 10_000, "type": "file"}

        def cat_file(self, path, start=None, end=None, **options):
            raise TimeoutError("too slow")

    fsspec.register_implementation("slow", Slow, clobber=True)
    with fsspec.open("memory://a.tar", "wb") as file:
        file.write(Path(shard(tmp_path, "a")).read_bytes())
    (part,) = index.build(["slow://a.tar"], tmp_path / "index", max_reject_rate=1)
    assert part.rejected == {"shard cannot be read": 1}
    (part,) = index.build(["memory://a.tar"], tmp_path / "index")
    assert (part.shard, part.used) == ("memory://a.tar", 4)


@pytest.mark.parametrize(("workers", "examples"), [(1, 60), pytest.param(2, 800, marks=pytest.mark.slow)])
def test_a_killed_index_goes_on(tmp_path, workers, examples):
    shards = [shard(tmp_path, f"s{n:02}", examples=examples) for n in range(20)]
    out = tmp_path / "index"
    command = [sys.executable, "-m", "tests.data.slow_index", str(out), str(workers), *shards]
    process = subprocess.Popen(command)
    while len(list(out.glob("*.parquet"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Processes that it started end with it.
    time.sleep(0.5 * (workers - 1))
    done = len(list(out.glob("*.parquet")))
    time.sleep(0.5 * (workers - 1))
    assert len(list(out.glob("*.parquet"))) == done
    told = []
    parts = index.build(shards, out, progress=lambda part, *_: told.append(part))
    assert 3 <= done < 20 and len(told) == 20 - done
    assert [part.used for part in parts] == [examples] * 20


def test_a_killed_pack_goes_on(tmp_path):
    """No shard is there in part, whenever it is killed, and what goes on ends as if nothing had been."""
    folder, out = tmp_path / "images", tmp_path / "shards"
    folder.mkdir()
    for number in range(400):
        (folder / f"{number:03}.jpg").write_bytes(hostile.JPEG + bytes(number % 7 * 1000))
    whole = {path.name: path.read_bytes() for path in pack(folder, tmp_path / "whole", per_shard=10)}
    code = "import sys, time, pathlib, jdiff.data.pack as p; folder, out = map(pathlib.Path, sys.argv[1:]); "
    code += "p.pack(folder, out, per_shard=10, progress=lambda *_: time.sleep(0.02))"
    for least in (2, 12):
        process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(out)])
        while len(list(out.glob("*.tar"))) < least:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = {path.name: path.read_bytes() for path in out.glob("*.tar")}
        assert least <= len(there) < len(whole) and there.items() <= whole.items()
    (out / ".00020.tar.tmp").write_bytes(b"half")
    assert {path.name: path.read_bytes() for path in pack(folder, out, per_shard=10)} == whole
    assert {path.name for path in out.iterdir()} == {*whole, "packed.json"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shards": ["missing.tar"]}, "missing.tar cannot be read"),
        ({"shards": []}, "got none"),
        ({"shards": ["a.tar", "./a.tar"]}, "named once each; got .*a.tar"),
        ({"depth": "deep"}, "headers, bytes, pixels; got 'deep'"),
        ({"workers": 0}, "at least 1; got 0"),
        ({"max_reject_rate": 1.5}, r"in \[0, 1\]; got 1.5"),
    ],
)
def test_refusals(change, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"shards": [shard(tmp_path, "a")], "out": tmp_path / "index"} | change
    with pytest.raises(ValueError, match=said):
        index.build(arguments.pop("shards"), arguments.pop("out"), **arguments)


def test_a_damaged_part_is_named(tmp_path):
    a = shard(tmp_path, "a")
    index.build([a], tmp_path / "index")
    part = tmp_path / "index" / index.part_name(a)
    # Cut short, and with the name of a column that is no text.
    for data in (b"PAR1", part.read_bytes().replace(b"offset", b"\xefffset")):
        part.write_bytes(data)
        with pytest.raises(ValueError, match=f"{part.name} .*remove it and index its shard again"):
            index.build([a], tmp_path / "index")


def test_a_folder_is_packed_as_it_is(tmp_path):
    folder = tmp_path / "images"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "a.jpg").write_bytes(hostile.JPEG)
    (folder / "b.png").write_bytes(hostile.PNG)
    (folder / "b.txt").write_text("a caption of b")
    (folder / "c.webp").write_bytes(b"broken")
    (folder / "c.json").write_text('{"caption": "told", "score": 3}')
    (folder / "notes.md").write_text("no image")
    shards = pack(folder, tmp_path / "shards", per_shard=2)
    assert [path.name for path in shards] == ["00000.tar", "00001.tar"]
    before = [path.read_bytes() for path in shards]
    shards[1].unlink()
    assert [path.read_bytes() for path in pack(folder, tmp_path / "shards", per_shard=2)] == before
    index.build(list(map(str, shards)), tmp_path / "index", max_reject_rate=1)
    rows = [row for path in index.parts_of(tmp_path / "index") for row in pq.read_table(path).to_pylist()]
    assert [(row["key"], row["caption"], row["reject"]) for row in rows] == [
        ("000000000", "a caption of b", None),
        ("000000001", "told", "not an image"),
        ("000000002", "cats", None),
    ]
    assert json.loads(rows[1]["json"]) == {"file": "c.webp", "caption": "told", "score": 3}
    (folder / "d.png").write_bytes(hostile.PNG)
    with pytest.raises(ValueError, match="holds shards of other files"):
        pack(folder, tmp_path / "shards", per_shard=2)
