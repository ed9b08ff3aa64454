"""Folders as Hugging Face's ImageFolder has them: captions in a table, folders of splits, refusals."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jdiff.data import ArraySource, Data, FolderSource, batches, open_source
from jdiff.data.pack import pack
from jdiff.data.sources import Source


def image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


def table(path, rows):
    if path.suffix == ".parquet":
        columns = {"file_name": list(rows), "caption": list(rows.values()), "more": [b"\xff"] * len(rows)}
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        path.write_text("file_name,text\n" + "".join(f'{name},"{text}"\n' for name, text in rows.items()))
    else:
        path.write_text("".join(json.dumps({"file_name": n, "caption": t, "more": 1}) + "\n" for n, t in rows.items()))


def parquet(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def rows(source):
    return {name: source[n]["caption"] for n, name in enumerate(source._names)}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_captions_in_a_table(tmp_path, kind):
    told = {f"{n:02}.png": f"picture {n}, of two words" for n in range(30)}
    for name in told:
        image(tmp_path / "a" / name)
    table(tmp_path / "a" / f"metadata.{kind}", told)
    sides = [FolderSource(tmp_path, split=split, size=4) for split in ("train", "held_out")]
    assert rows(sides[0]) | rows(sides[1]) == {f"a/{name}": text for name, text in told.items()}
    assert sides[0].class_names == () and not sides[0].skipped.total()
    before = sides[0].fingerprint
    table(tmp_path / "a" / f"metadata.{kind}", told | {f"{n:02}.png": "other" for n in range(30)})
    assert FolderSource(tmp_path, split="train", size=4).fingerprint != before
    (tar,) = pack(tmp_path, tmp_path.parent / f"shards_{kind}")
    with tarfile.open(tar) as file:
        assert file.extractfile("000000007.txt").read() == b"other"


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_folders_of_splits(tmp_path, held_out):
    for side, number in (("train", 12), (held_out, 5)):
        for n in range(number):
            image(tmp_path / side / ("cat" if n % 2 else "dog") / f"{n}.png", n)
    train, held = (FolderSource(tmp_path, split=split, size=4) for split in ("train", "held_out"))
    assert (len(train), len(held)) == (12, 5) and train.class_names == held.class_names == ("cat", "dog")
    assert [held[n]["label"] for n in range(5)] == [0, 0, 1, 1, 1]
    assert {name.split("/")[0] for name in train._names} == {"train"}


def test_a_train_folder_alone_is_split_by_name(tmp_path):
    for n in range(40):
        image(tmp_path / "train" / f"{n}.png")
    train, held = (FolderSource(tmp_path, split=split, size=4) for split in ("train", "held_out"))
    assert len(train) + len(held) == 40 and 0 < len(held) < 15 and train.class_names == ()


def test_classes_that_are_named_as_splits_but_are_not(tmp_path):
    """A class "test" beside a class "cat" is a class."""
    for n in range(20):
        image(tmp_path / ("test" if n % 2 else "cat") / f"{n}.png")
    assert FolderSource(tmp_path, split="train", size=4).class_names == ("cat", "test")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "caption": "a"}\n{"file', r"metadata\.jsonl cannot be read"),
        ("metadata.jsonl", "[1]\n", "line 1 is no object"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": 3}\n', "line 1, must have file_name, and caption or text"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n' * 2, "line 2: a.png has a caption already"),
        ("metadata.jsonl", '{"file_name": "other.png", "text": "x"}\n', "lacks 1 images: a.png"),
        ("metadata.csv", "file_name,label\na.png,3\n", "line 2, must have file_name"),
        ("metadata.csv", b"file_name,text\na.png,caf\xe9\n", r"metadata\.csv cannot be read"),
        ("metadata.parquet", b"PAR1 nothing PAR1", r"metadata\.parquet cannot be read"),
        (
            "metadata.parquet",
            parquet(file_name=["a.png"], label=[3]),
            "must have file_name, and caption or text; it has",
        ),
        ("metadata.parquet", parquet(file_name=["a.png", None], text=["x", "y"]), "row 2, must have file_name"),
        ("metadata.parquet", parquet(file_name=["a.png"] * 2, text=["x", "y"]), "row 2: a.png has a caption already"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, name, content, said):
    image(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said):
        FolderSource(tmp_path, split="train", size=4)


def test_arrays_and_folders_enter_by_one_interface(tmp_path):
    """The same images, from memory and from a folder, give the same batches but for their order."""
    for n in range(30):
        image(tmp_path / f"{n:02}.png", 8 * n)
    folder = open_source(Data(folder=str(tmp_path), size=4), "train")
    arrays = ArraySource(np.stack([folder[n]["image"] for n in range(len(folder))]))
    sources: list[Source] = [folder, arrays]
    one, other = (batches(source, batch_size=8, seed=2, flip=True)[5] for source in sources)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
