"""Clusters of captions and of embeddings: against all pairs, at planted angles, and as columns of a view."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from jdiff.data import index
from jdiff.data.clusters import caption_vectors, pairs_close
from jdiff.data.dedup import deduplicate
from jdiff.data.filter import Recipe, dedup_file, make_view
from jdiff.data.scores import score
from tests.data import hostile


def turned(vectors, apart, random):
    """Vectors of length 1 that are `apart` (1 - cosine) from those given."""
    side = random.standard_normal(vectors.shape)
    side -= (side * vectors).sum(-1, keepdims=True) * vectors
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    cosine = 1 - np.asarray(apart)[..., None]
    return cosine * vectors + np.sqrt(1 - cosine**2) * side


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("limit", [0.02, 0.05, 0.1])
def test_pairs_are_those_of_all_pairs(limit, offset):
    """Also where all vectors lie on one side, as those of CLIP do."""
    random = np.random.default_rng(3)
    vectors = random.standard_normal((1500, 64)) / 8 + offset * np.eye(64)[0]
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    copies = turned(vectors[:500], random.uniform(0, 2 * limit, 500), random)
    every = np.concatenate([vectors, copies]).astype(np.float32) * random.uniform(0.1, 9, (2000, 1)).astype(np.float32)
    length = np.linalg.norm(every, axis=-1)
    cosines = every @ every.T / np.outer(length, length)
    wanted = {(a, b) for a, b in np.argwhere(cosines >= 1 - limit).tolist() if a < b}
    a, b, apart, _ = pairs_close(every, limit)
    found = set(zip(a.tolist(), b.tolist(), strict=True))
    assert len(wanted) > 200 and len(found) == len(a)
    assert found <= {(a, b) for a, b in np.argwhere(cosines >= 1 - limit - 1e-5).tolist()}
    assert len(found & wanted) >= 0.99 * len(wanted)
    np.testing.assert_allclose(apart, 1 - cosines[a, b], atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_vectors(count):
    assert len(pairs_close(np.ones((count, 5), np.float32), 0.1)[0]) == (count == 2)


def test_zeros_are_near_nothing():
    assert len(pairs_close(np.zeros((4, 5), np.float32), 0.1)[0]) == 0


def test_captions_are_counts_of_runs_of_three_letters():
    """Cosines of the counts themselves, but for what shares a place in 512."""
    captions = ["a red cube on the grass", "a red cube in the grass", "Red  CUBE", "red cube", "noon at sea"]
    runs = [[f"  {' '.join(text.lower().split())}  "[n:][:3] for n in range(50)] for text in captions]
    runs = [[run for run in some if len(run) == 3] for some in runs]
    names = sorted({run for some in runs for run in some})
    counts = np.array([[some.count(name) for name in names] for some in runs], float)
    vectors = caption_vectors(captions).astype(float)
    cosines = [rows @ rows.T / np.outer(*[np.linalg.norm(rows, axis=1)] * 2) for rows in (counts, vectors)]
    np.testing.assert_allclose(cosines[1], cosines[0], atol=0.15)
    np.testing.assert_array_equal(vectors[2], vectors[3])


CAPTIONS = {
    "a": "a painting of a small white house by the sea at night",
    "b": "A painting of a small  white house by the sea at night",
    "c": "a painting of a small white house by the sea at night.",
    "d": "two dogs run over a field of snow",
}


@pytest.fixture
def indexed(tmp_path):
    sizes = {"a": 20, "b": 30, "c": 25, "d": 20}
    groups = {
        key: {"png": hostile.encoded(hostile.smooth(sizes[key], 20), "PNG"), "txt": text.encode()}
        for key, text in CAPTIONS.items()
    }
    (tmp_path / "a.tar").write_bytes(hostile.shard_of(groups))
    index.build([str(tmp_path / "a.tar")], tmp_path / "index", depth="headers")
    return tmp_path / "index"


def clusters(folder, by, column):
    rows = pq.read_table(dedup_file(folder, by)).to_pylist()
    return {row["key"]: rows[row[column]]["key"] for row in rows}


def test_captions_that_say_the_same_are_one_cluster(indexed, tmp_path):
    counts = deduplicate(indexed, by="captions")
    assert (counts["exact"], counts["near"], counts["kept"]) == (1, 1, 2)
    assert clusters(indexed, "captions", "caption_cluster") == {"a": "b", "b": "b", "c": "b", "d": "d"}
    assert make_view(indexed, tmp_path / "v", Recipe(where="not caption_duplicate"))["rows"] == 2
    counts = deduplicate(indexed, by="captions", distance=-1)
    assert (counts["exact"], counts["near"]) == (1, 0)


class Angles:
    """Pictures as vectors that turn with their width."""

    name, identity, at_least = "angles", "1", 64

    def __call__(self, images, captions):
        angle = np.array([image.width for image in images]) / 100
        return {"wide": angle, "embedding": np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)}


def test_embeddings_that_point_one_way_are_one_cluster(indexed, tmp_path):
    with pytest.raises(ValueError, match="has no embeddings: `jdiff data score"):
        deduplicate(indexed, by="embeddings")
    score(indexed, Angles())
    # 0.05 radians are 0.00125 apart, 0.1 are 0.005.
    assert deduplicate(indexed, by="embeddings", distance=0.002)["near"] == 2
    assert clusters(indexed, "embeddings", "embedding_cluster") == {"a": "a", "b": "b", "c": "b", "d": "a"}
    assert deduplicate(indexed, by="embeddings", distance=0.006)["kept"] == 1
    assert deduplicate(indexed, by="embeddings", distance=0.0005)["kept"] == 3
    where = "not embedding_duplicate and wide > 0.1"
    assert make_view(indexed, tmp_path / "v", Recipe(where=where))["rows"] == 3


def test_refusals(indexed):
    with pytest.raises(ValueError, match="by must be one of pictures, captions, embeddings; got 'taste'"):
        deduplicate(indexed, by="taste")
    with pytest.raises(ValueError, match=r"distance must be in 0\.\.0\.2, or -1 .* got 0\.4"):
        deduplicate(indexed, by="captions", distance=0.4)
