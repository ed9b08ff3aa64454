"""Views, index parts and their siblings that were damaged or made up: refused by name, and never a crash."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from jdiff.data import index
from jdiff.data.dedup import deduplicate
from jdiff.data.filter import Recipe, make_view
from jdiff.data.report import report
from jdiff.data.scorers import Sharpness
from jdiff.data.scores import score
from jdiff.data.sealed import seal
from jdiff.data.view import COLUMNS, View
from tests.data import hostile


@pytest.fixture
def folder(tmp_path):
    groups = {str(n): hostile.pair("png", hostile.PNG) for n in range(6)}
    (tmp_path / "a.tar").write_bytes(hostile.shard_of(groups))
    index.build([str(tmp_path / "a.tar")], tmp_path / "index")
    score(tmp_path / "index", Sharpness())
    deduplicate(tmp_path / "index", distance=-1)
    make_view(tmp_path / "index", tmp_path / "view.arrow", Recipe(weight="1"))
    return tmp_path


def flips(path, count, seed=0):
    """The file with one bit turned, `count` times."""
    good, rng = path.read_bytes(), np.random.default_rng(seed)
    for place in rng.integers(8 * len(good), size=count).tolist():
        data = bytearray(good)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        yield place
    path.write_bytes(good)


def test_no_bit_of_a_view_turns_in_silence(folder):
    for _ in flips(folder / "view.arrow", 400):
        with pytest.raises(ValueError, match=r"view\.arrow cannot be read: .*jdiff data filter INDEX -o"):
            View(folder / "view.arrow")
    assert len(View(folder / "view.arrow")) == 6


@pytest.mark.parametrize("kind", ["*.parquet", "scores/*/*.parquet", "dedup/*.parquet"])
def test_no_bit_of_an_index_turns_in_silence(folder, kind):
    (path,) = (folder / "index").glob(kind)
    for _ in flips(path, 400 if kind == "*.parquet" else 40):
        with pytest.raises(ValueError, match=path.name):
            make_view(folder / "index", folder / "new.arrow", Recipe())
    assert make_view(folder / "index", folder / "new.arrow", Recipe())["rows"] == 6


def test_behind_the_digest_there_is_no_crash():
    """In a process of its own, which a crash would end."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz_views", "4", "7"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "view: refused" in done.stdout and "part: refused" in done.stdout


def written(folder, change, metadata=None):
    """The view with other columns or metadata, and a digest that fits."""
    view = folder / "view.arrow"
    reader = pa.ipc.open_file(view)
    described = json.loads(reader.schema.metadata[b"jdiff"]) | (metadata or {})
    batch, counts = (reader.get_batch_with_custom_metadata(n) for n in range(reader.num_record_batches))
    columns = {name: batch[0].column(name).to_pylist() for name in COLUMNS.names}
    for name, value in change.items():
        columns[name][2] = value
    schema = COLUMNS.with_metadata({"jdiff": json.dumps(described)})
    changed = pa.record_batch([pa.array(columns[field.name], field.type) for field in COLUMNS], schema=schema)
    reader.close() if hasattr(reader, "close") else None
    with pa.OSFile(str(view), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(changed)
        writer.write_batch(pa.RecordBatch.from_pylist([], schema=schema), custom_metadata=counts[1])
    seal(view)
    return view


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": -1.0}, "column weight must be in 0"),
        ({"weight": float("nan")}, "column weight must be in 0"),
        ({"weight": float("inf")}, "column weight must be in 0"),
        ({"weight": None}, "column weight must have a value in every row or in none"),
        ({"weight": 1e308}, None),
        ({"offset": None}, "column offset must have a value in every row"),
        ({"offset": -512}, "column offset must be in 0"),
        ({"size": 0}, "column size must be in 1"),
        ({"size": 2**40}, "column size must be in 1"),
        ({"width": 0}, "column width must be in 1"),
        ({"width": 30_000, "height": 30_000}, "width times height must be at most"),
        ({"shard": 1}, r"column shard must be in 0\.\.0"),
        ({"shard": -1}, "column shard must be in 0"),
        ({"caption": None}, "column caption must have a value"),
        ({"tags": ["a", None]}, "column tags must hold texts"),
    ],
)
def test_values_out_of_range_are_named(folder, change, said):
    view = written(folder, change)
    if said is None:
        assert len(View(view)) == 6
        return
    with pytest.raises(ValueError, match=rf"view\.arrow cannot be read: {said}"):
        View(view)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("simplecache::https://a.org/x.tar", "chain of URLs"),
        ("https://a.org/x.tar::zip://y", "chain of URLs"),
        ("github://a:b@c/x.tar", "must be a local path, or a URL of http, https, s3"),
        ("file:///etc/passwd", "must be a local path"),
        ("FTP://a.org/x.tar", "must be a local path"),
        ("relative.tar", "must be a path from the root on"),
        ("/a\0b.tar", "must be a path from the root on"),
    ],
)
def test_a_view_names_no_shard_of_any_kind(folder, name, said):
    view = written(folder, {}, {"shards": [[name, "1:2"]]})
    with pytest.raises(ValueError, match=said):
        View(view)
    if "://" in name:
        with pytest.raises(ValueError, match=said):
            index.build([name], folder / "other")


@pytest.mark.parametrize(
    "metadata",
    [{"shards": 5}, {"shards": [["/a.tar"]]}, {"shards": [["/a.tar", 3]]}, {"fingerprint": None}, {"shards": None}],
)
def test_metadata_of_other_kinds_are_named(folder, metadata):
    with pytest.raises(ValueError, match=r"view\.arrow cannot be read: its"):
        View(written(folder, {}, metadata))


def test_a_view_without_a_digest_is_refused_with_what_to_do(folder):
    view = folder / "view.arrow"
    data = view.read_bytes()
    place = data.index(b"jdiff sha256")
    view.write_bytes(data[:place] + data[place + 48 :])
    with pytest.raises(ValueError, match=r"it has no digest: .*; `jdiff data filter INDEX -o .*` writes it anew"):
        View(view)


def test_other_readers_of_arrow_and_parquet_read_them_too(folder):
    assert pa.ipc.open_file(folder / "view.arrow").read_all().num_rows == 6
    assert all(pq.read_table(path).num_rows == 6 for path in (folder / "index").glob("*.parquet"))


def part_of(folder, metadata=None, **columns):
    """The index's part with other metadata or columns, and a digest that fits."""
    (path,) = (folder / "index").glob("*.parquet")
    table = pq.read_table(path)
    for name, value in columns.items():
        kind = table.schema.field(name).type
        table = table.set_column(table.schema.get_field_index(name), name, pa.array([value] * len(table), kind))
    described = json.loads(table.schema.metadata[b"jdiff"])
    told = json.dumps(metadata if isinstance(metadata, list) else described | (metadata or {}))
    pq.write_table(table.replace_schema_metadata({"jdiff": told}), path)
    seal(path)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metadata": []}, "must hold a JSON object, got a list"),
        ({"metadata": {"seen": "many"}}, "its metadata must be that of a part"),
        ({"metadata": {"rejected": None}}, "its metadata must be that of a part"),
        ({"metadata": {"fields": {"a": 3}}}, "its metadata must be that of a part"),
        ({"metadata": {"more": 1}}, "unexpected keyword argument"),
        ({"metadata": {"shard": "/other.tar"}}, "it is the part of /other.tar"),
        ({"shard": "/other.tar"}, "has a row of /other.tar, of which there is no part"),
        ({"offset": -1}, "holds rows that cannot be read: column offset"),
        ({"size": None}, "holds rows that cannot be read: column size"),
        ({"json": "{"}, "a record in|alformed|JSON"),
    ],
)
def test_parts_that_were_made_up_are_named(folder, change, said):
    part_of(folder, **change)
    with pytest.raises(ValueError, match=said):
        make_view(folder / "index", folder / "new.arrow", Recipe(where="aesthetic is null or aesthetic > 0"))
        report(folder / "index")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x\" FROM read_text('/etc/passwd')) TO 'y'; --", "its name must be of letters"),
        ("reject", "which the index or another scorer has"),
        ("Caption", "which the index or another scorer has"),
        ("duplicate", "which the index or another scorer has"),
        ("", "its name must be of letters"),
    ],
)
def test_columns_of_scores_are_names(folder, name, said):
    class Odd(Sharpness):
        def __call__(self, images, captions):
            return {name: np.zeros(len(images))}

    Odd.identity = "odd"
    with pytest.raises(ValueError, match=said):
        score(folder / "index", Odd())
        make_view(folder / "index", folder / "new.arrow", Recipe())
    # As somebody else might have written it.
    (path,) = (folder / "index" / "scores" / "sharpness").glob("*.parquet")
    table = pq.read_table(path)
    renamed = table.rename_columns([name if one == "sharpness" else one for one in table.column_names])
    pq.write_table(renamed.replace_schema_metadata(table.schema.metadata), path)
    seal(path)
    with pytest.raises(ValueError, match=said):
        make_view(folder / "index", folder / "new.arrow", Recipe())


@pytest.mark.parametrize("field", ["where", "weight", "tags"])
@pytest.mark.parametrize(
    "text",
    [
        "true) or (true",
        "1; DROP VIEW examples",
        "DROP VIEW examples",
        "1 FROM examples",
        "1, 2",
        "1 UNION SELECT 2",
        "1 ORDER BY 1",
        "1 /* open",
        "",
        "1) -- ",
        "COPY (SELECT 1) TO 'x.csv'",
        "1 WHERE true",
    ],
)
def test_sql_is_one_expression(folder, field, text, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=field):
        make_view(folder / "index", folder / "new.arrow", Recipe(**{field: text}))
    assert sorted(folder.rglob("*")) == before


def test_paths_are_no_patterns(folder):
    for name in ("id*x", "id?x", "[a-z]dex", "in'dex"):
        (folder / "index").rename(folder / name)
        make_view(folder / name, folder / "new.arrow", Recipe(where="not duplicate and sharpness > 0"))
        index.build([str(folder / "a.tar")], folder / "idax")
        assert len(View(folder / "new.arrow")) == 1
        (folder / name).rename(folder / "index")
