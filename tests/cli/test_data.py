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
