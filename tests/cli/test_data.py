"""`jdiff data`, as its users see it: shards from a folder, an index of them, views, and what is refused."""

import json

import pytest

from jdiff import cli
from tests.data import hostile


@pytest.fixture
def run(capsys):
    """run(words) -> what the command printed."""

    def call(*words):
        capsys.readouterr()
        cli.main(["data", *map(str, words)])
        return capsys.readouterr().out.strip()

    return call


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(9):
        (images / f"{number}.png").write_bytes(hostile.encoded(hostile.smooth(40 + 8 * number, 48), "PNG"))
        (images / f"{number}.json").write_text(json.dumps({"caption": f"picture {number}", "aesthetic": number}))
    (images / "page.jpg").write_bytes(b"<html>404</html>")
    return images


@pytest.fixture
def index(folder, run, tmp_path):
    run("pack", folder, "-o", tmp_path / "shards", "--per-shard", 4)
    run("index", tmp_path / "shards", "-o", tmp_path / "index", "--workers", 1)
    return tmp_path / "index"


def test_a_folder_becomes_shards_and_an_index(folder, run, tmp_path):
    assert "3 shards" in run("pack", folder, "-o", tmp_path / "shards", "--per-shard", 4)
    words = run("index", tmp_path / "shards", "-o", tmp_path / "index", "--workers", 1)
    assert "3 shards, 10 examples seen = 9 used + 1 rejected\nrejected: text instead of an image 1" in words
    figures = json.loads(run("index", tmp_path / "shards", "-o", tmp_path / "index", "--json"))
    assert (figures["seen"], figures["used"], figures["rejected"]) == (10, 9, {"text instead of an image": 1})


def test_wrong_words(refused, folder, tmp_path):
    for words, message in [
        (["nope"], "there is no verb 'nope' of jdiff data"),
        (["pack", tmp_path / "none", "-o", tmp_path / "s"], "does not exist"),
        (["pack", folder, "-o", tmp_path / "s", "--per-shard", 0], "per_shard must be at least 1; got 0"),
        (["pack", folder, "-o", folder], "is not empty"),
        (["index", tmp_path / "none.tar", "-o", tmp_path / "i"], "none.tar cannot be read"),
        (["index", folder, "-o", tmp_path / "i"], "has no tar files"),
        (["index", "-o", tmp_path / "i"], "named once each; got none"),
        (["index", folder / "page.jpg", "-o", tmp_path / "i"], "not a tar file 1"),
    ]:
        assert message in refused("data", *words)


def test_an_index_becomes_a_view(index, run, refused, tmp_path):
    out = tmp_path / "view.arrow"
    assert "9 rows = 9 kept" in run("dedup", index, "--distance", -1)
    figures = json.loads(run("filter", index, "--where", "aesthetic > 5 and not duplicate", "-o", out, "--json"))
    assert figures["rows"] == 3 and len(figures["fingerprint"]) == 64
    assert "3 rows" in run("filter", index, "--where", "aesthetic > 5", "-o", out)
    for words, message in [
        (["filter", index, "--where", "nothing > 5", "-o", out], "the columns are shard"),
        (["filter", tmp_path / "none", "-o", out], "holds nothing"),
        (["filter", index, "-o", tmp_path / "none" / "v.arrow"], "folder that does not exist"),
        (["filter", index, "-o", out, "--opt-out", tmp_path / "none.txt"], "none.txt"),
        (["dedup", index, "--distance", 99], "got 99"),
        (["dedup", index, "--by", "taste"], "by must be one of pictures, captions, embeddings; got 'taste'"),
        (["dedup", index, "--by", "embeddings"], "has no embeddings: `jdiff data score"),
    ]:
        assert message in refused("data", *words)


def test_captions_are_clustered(index, run, tmp_path):
    assert "--where 'not caption_duplicate'" in run("dedup", index, "--by", "captions", "--distance", 0.2)
    where = "not caption_duplicate or caption_cluster >= 0"
    assert "9 rows" in run("filter", index, "--where", where, "-o", tmp_path / "v.arrow")


def test_an_index_is_scored(index, run, refused, tmp_path):
    said = run("score", index, "--scorer", "sharpness")
    assert said == "9 examples of 3 shards scored by sharpness, 0 of them cannot be decoded; 0 shards had their scores"
    assert json.loads(run("score", index, "--scorer", "sharpness", "--json"))["shards_before"] == 3
    assert "9 rows" in run("filter", index, "--where", "sharpness >= 0 and aesthetic >= 0", "-o", tmp_path / "v.arrow")
    none = tmp_path / "none"
    for words, message in [
        (["taste"], "--scorer must be one of sharpness, faces, open_nsfw, clip, aesthetic, nsfw, watermark; got taste"),
        (["clip"], "scorer clip needs --clip FOLDER of a CLIP with its weights"),
        (["clip", "--clip", none], f"{none} is no folder"),
        (["nsfw", "--clip", none], "scorer nsfw needs --head FILE.safetensors with its weights"),
        (["sharpness", "--embeddings"], "scorer sharpness takes no --embeddings"),
        (["watermark", "--clip", none, "--head", none, "--embeddings"], "scorer watermark takes no --embeddings"),
    ]:
        assert message in refused("data", "score", index, "--scorer", *words)


def test_an_index_is_reported(index, run, refused, tmp_path):
    figures = json.loads(run("report", index, "-o", tmp_path / "report.png", "--json"))
    assert (figures["seen"], figures["used"], figures["width"]["most"]) == (10, 9, 104)
    assert "10 examples seen = 9 used + 1 rejected" in run("report", index, "-o", tmp_path / "report.png")
    assert (tmp_path / "report.png").exists()
    assert "holds nothing" in refused("data", "report", tmp_path / "none")


EVIL = "\x1b]0;owned\x07\x1b[31m\u202egpj\nfake line"


@pytest.fixture
def evil_index(tmp_path, run):
    groups = {}
    for n in range(5):
        record = {"license": f"{EVIL} $\\frac{{{n}}}$", "url": f"https://a.org\u202e$x_{n}$/y", "caption": EVIL}
        groups[str(n)] = {"png": hostile.PNG, "json": json.dumps(record).encode()}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(hostile.shard_of(groups))
    run("index", tmp_path / "shards", "-o", tmp_path / "index", "--workers", 1)
    return tmp_path / "index"


def test_what_strangers_wrote_is_escaped(evil_index, run, refused, tmp_path):
    run("filter", evil_index, "-o", tmp_path / "view.arrow", "--where", "caption <> '\x1b[2J'")
    said = run("report", evil_index, "-o", tmp_path / "report.png", "--view", tmp_path / "view.arrow")
    assert said.isprintable() or all(line.isprintable() for line in said.split("\n"))
    assert "\\x1b]0;owned" in said and "fake line" not in said.split("\n") and (tmp_path / "report.png").exists()
    for words in (
        ["filter", evil_index, "-o", tmp_path / "v.arrow", "--where", "caption = \x1b[31m"],
        ["index", tmp_path / "\x1b[31mred\u202e.tar", "-o", tmp_path / "i"],
    ):
        line = refused("data", *words)
        assert line.isprintable() and "\\x1b[31m" in line


def test_files_that_are_left_out_are_named(folder, run, refused, tmp_path):
    run("pack", folder, "-o", tmp_path / "shards")
    for name in (
        "x.tar.gz",
        "y.tgz",
        "z.tar.zst",
        "w.zip",
        "v.parquet",
        "00000_stats.json",
        "._00000.tar",
        "00000.parquet",
    ):
        (tmp_path / "shards" / name).write_bytes(b"x")
    (tmp_path / "shards" / "00000.parquet").unlink()
    said = run("index", tmp_path / "shards", "-o", tmp_path / "index", "--workers", 1)
    for name in ("x.tar.gz", "y.tgz", "z.tar.zst", "w.zip", "v.parquet", "00000_stats.json"):
        assert f"({name}) 1" in said
    assert "hidden or of the system 1" in said and "packed.json" not in said
    for path in (tmp_path / "shards").glob("*.tar"):
        path.unlink()
    assert "left out: 1 .tar.gz (x.tar.gz)" in refused("data", "index", tmp_path / "shards", "-o", tmp_path / "i")
    (folder / "Thumbs.db").write_bytes(b"")
    assert "hidden or of the system 1" in run("pack", folder, "-o", tmp_path / "again")


def test_an_opt_out_list_of_any_editor(index, run, refused, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeffhttps://a.org/x\r\n".encode())
    assert "9 rows" in run("filter", index, "-o", tmp_path / "v.arrow", "--opt-out", listed)
    listed.write_bytes("a.org".encode("utf-16"))
    assert f"opt_out {listed} must be UTF-8" in refused(
        "data", "filter", index, "-o", tmp_path / "v.arrow", "--opt-out", listed
    )
