"""Folders as people have them: hidden files, links, loops, names of any bytes, under any locale."""

import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jdiff.data import Data, FolderSource, index, open_source
from jdiff.data.filter import Recipe, make_view
from jdiff.data.pack import pack
from jdiff.data.view import View
from jdiff.data.walk import HIDDEN, files, name_of, path_of
from tests.data import hostile

JUNK = [".ipynb_checkpoints/a.png", "__MACOSX/x/._a.png", "._a.png", "Thumbs.db", ".DS_Store", "desktop.ini",
        "@eaDir/a.png", "$RECYCLE.BIN/a.png", "lost+found/a.png", ".git/a.png", "#recycle/a.png"]  # fmt: skip


_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def put(root, name, content=b""):
    path = os.path.join(os.fsencode(root), name if isinstance(name, bytes) else name.encode())
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def test_hidden_and_system_files_are_left_out_and_counted(tmp_path):
    for name in ("cat/1.png", "dog/2.png", *JUNK, *(f"cat/{junk}" for junk in JUNK)):
        put(tmp_path, name, hostile.PNG)
    names, left_out = files(tmp_path)
    assert names == ["cat/1.png", "dog/2.png"]
    assert left_out == {HIDDEN: 2 * len(JUNK)}
    source = FolderSource(tmp_path, split="train", size=8)
    assert source.class_names == ("cat", "dog") and source.skipped == left_out


def test_links_are_followed_once_and_loops_end(tmp_path):
    root, away = tmp_path / "root", tmp_path / "away"
    put(away, "1.png")
    put(root, "real/2.png")
    for link, target in {
        "linked": away, "again": away, "a_loop": root, "real/up": "..", "a_real": root / "real", "self": "self",
        "gone.png": "nowhere", "file.png": away / "1.png",
    }.items():  # fmt: skip
        (root / link).symlink_to(target)
    os.mkfifo(root / "pipe.png")
    names, left_out = files(root)
    # A folder below the root keeps its own name; of two links to one folder the first stands.
    assert names == ["again/1.png", "file.png", "real/2.png"]
    assert left_out == {"link to a folder that is read already": 4, "broken link": 2, "no regular file": 1}


def test_linked_folders_are_classes(tmp_path):
    for n in range(40):
        put(tmp_path, f"store/{'ab'[n % 2]}/{n}.png", hostile.PNG)
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / name).symlink_to(tmp_path / "store" / name)
    sides = [FolderSource(tmp_path / "data", split=split, size=8) for split in ("train", "held_out")]
    assert sides[0].class_names == ("a", "b") and sum(map(len, sides)) == 40


@pytest.mark.parametrize(
    "raw", [b"caf\xe9", b"\xff\xfe", "café".encode(), b"a\\xe9b", b"\\x5cx41", b"new\nline", b"\x80\\"]
)
def test_names_of_any_bytes_come_back(raw):
    name = name_of(raw)
    assert os.fsencode(path_of(name)) == raw and name.encode().decode() == name


def test_names_are_ordered_whatever_the_locale(tmp_path):
    for raw in (b"\xc3\xa9.png", b"B.png", b"a.png", b"\xff.png", b"Z/\xc3\xbc.png"):
        put(tmp_path, raw)
    code = "import sys; from jdiff.data.walk import files; print(ascii(files(sys.argv[1]).names))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for settings in (_ASCII, {"LC_ALL": "C.UTF-8"})
    ]
    assert told[0] == told[1] == f"{files(tmp_path).names!a}\n"


@pytest.fixture
def strange(tmp_path):
    """A folder of images whose names, and whose classes', are not all UTF-8."""
    for n in range(24):
        put(tmp_path, b"images/%s/%d\xff.png" % (b"caf\xe9" if n % 2 else "näh".encode(), n), hostile.PNG)
    return tmp_path


def test_names_of_any_bytes_are_trained_on(strange):
    sides = [open_source(Data(folder=str(strange / "images"), size=8), split) for split in ("train", "held_out")]
    assert sides[0].class_names == ("caf\\xe9", "näh") and sum(map(len, sides)) == 24
    assert sides[0][0]["image"].shape == (8, 8, 3) and json.dumps(sides[0].class_names).isascii()


def test_shards_of_any_name_are_packed_indexed_and_viewed(strange):
    shards = strange / os.fsdecode(b"shards\xe9")
    made = pack(strange / "images", shards)
    index.build([str(path) for path in made], strange / "index")
    make_view(strange / "index", strange / "view.arrow", Recipe())
    view = View(strange / "view.arrow")
    assert view.shards[0][0].endswith("/shards\\xe9/00000.tar") and len(view) == 24
    source = open_source(Data(view=view.path, size=8), "train")
    assert source[0]["caption"] in ("caf\\xe9", "näh") and source[0]["reject"] == ""
    rows = pq.read_table(next((strange / "index").glob("*.parquet"))).to_pylist()
    assert json.loads(rows[0]["json"])["file"] == "caf\\xe9/11\\xff.png"


def test_an_ascii_locale_is_no_obstacle(strange):
    code = (
        "import sys; from jdiff.cli import main; images, shards, index = sys.argv[1:]\n"
        "main(['data', 'pack', images, '-o', shards])\n"
        "main(['data', 'index', shards, '-o', index, '--workers', '1'])"
    )
    words = [sys.executable, "-c", code, *(strange / name for name in ("images", "é", "index"))]
    done = subprocess.run(words, env=os.environ | _ASCII, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"24 examples seen = 24 used + 0 rejected" in done.stdout and done.stdout.isascii()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", 'file_name,text\na.png,\nb.png,"two, words"\n'),
        ("metadata.csv", "file_name,caption,text\na.png,,\nb.png,\"two, words\",x\n"),
        ("metadata.jsonl", '{"file_name": "./a.png", "caption": ""}\n{"file_name": "b.png", "text": "two, words"}'),
    ],
)  # fmt: skip
def test_an_empty_caption_is_a_caption(tmp_path, name, content):
    for file in "ab":
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{file}.png")
    (tmp_path / name).write_text(content)
    sources = [FolderSource(tmp_path, split="train", size=4)]
    assert {row["caption"] for source in sources for row in (source[n] for n in range(len(source)))} == {
        "",
        "two, words",
    }


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.csv", "file_name,text\na.png,a cat, sitting\n", "line 2, has more fields than the header"),
        ("metadata.csv", "file_name,text\na.png\n", "line 2, must have file_name, and caption or text"),
        ("metadata.csv", 'file_name,text\na.png,"a cat', r"metadata\.csv cannot be read: .*unexpected end of data"),
        ("metadata.csv", "", "lacks 1 images: a.png"),
        ("metadata.jsonl", "", "lacks 1 images: a.png"),
        ("metadata.jsonl", '{"file_name": "a.png", "caption": null}', "caption=None"),
        ("metadata.jsonl", '{"file_name": "a.png", "caption": "x"}\n{"file_name": "b.pn', r"jsonl cannot be read"),
        ("metadata.jsonl", '{"a": ' + "[" * 100_000, r"metadata\.jsonl cannot be read"),
    ],
)
def test_tables_of_captions_that_lost_something_are_named(tmp_path, name, content, said):
    put(tmp_path, "a.png", hostile.PNG)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        FolderSource(tmp_path, split="train", size=4)


def test_a_table_and_files_meet_however_accents_are_written(tmp_path):
    for n in range(12):
        put(tmp_path, unicodedata.normalize("NFD", f"é{n}.png"), hostile.PNG)
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"é{n}.png,told\n" for n in range(12)))
    assert FolderSource(tmp_path, split="train", size=4)[0]["caption"] == "told"


def test_rows_of_a_table_without_an_image_are_counted(tmp_path):
    for n in range(12):
        put(tmp_path, f"{n}.png", hostile.PNG)
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{n}.png,x\n" for n in range(15)))
    source = FolderSource(tmp_path, split="train", size=4)
    assert source.skipped == {"caption of an image that is not there": 3}
