"""Duplicates: the index of hashes against all pairs, what is kept, and how well real copies are found."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jdiff.data import index
from jdiff.data.decode import decode, perceptual_hash
from jdiff.data.dedup import deduplicate, near, pairs_within
from jdiff.data.view import DEDUP, Recipe, View, make_view
from tests.data import hostile


def clustered(count, seed=0):
    """Random hashes, half of them a few bits from another."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 2**64, count, np.uint64)
    for place in range(count // 2, count):
        values[place] = values[random.integers(max(count // 2, 1))]
        for bit in random.choice(64, random.integers(0, 14), replace=False):
            values[place] ^= np.uint64(1) << np.uint64(bit)
    return np.unique(values)


def all_pairs(values, distance):
    apart = np.bitwise_count(values[:, None] ^ values[None])
    return {(a, b) for a, b in np.argwhere(apart <= distance).tolist() if a < b}


@pytest.mark.parametrize("count", [1, 2, 5, 300, 2000])
@pytest.mark.parametrize("distance", [0, 1, 3, 8, 11])
def test_pairs_are_all_pairs_within_the_distance_each_once(count, distance):
    values = clustered(count)
    found = [
        tuple(sorted(pair))
        for a, b in pairs_within(values, distance)
        for pair in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert len(found) == len(set(found))
    assert set(found) == all_pairs(values, distance)


def test_what_is_dropped_is_near_what_is_kept_and_what_is_kept_is_not_near():
    hashes = np.random.default_rng(5).permutation(np.repeat(clustered(800), 2))
    keeper, _ = near(hashes, 6)
    kept = np.unique(keeper)
    np.testing.assert_array_equal(keeper[kept], kept)
    assert (np.bitwise_count(hashes ^ hashes[keeper]) <= 6).all()
    assert not all_pairs(np.sort(hashes[kept]), 6)
    assert (keeper <= np.arange(len(hashes))).all()


def test_chains_do_not_become_one_cluster():
    chain = np.array([(1 << n) - 1 for n in range(0, 40, 5)], np.uint64)
    keeper, _ = near(chain, 5)
    assert keeper.tolist() == [0, 0, 2, 2, 4, 4, 6, 6]


def picture(seed, size=160):
    """A smooth random picture with edges, unlike any other."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    for _ in range(6):
        left, top, width, height = random.integers(10, size // 2, 4).tolist()
        image.paste(tuple(random.integers(0, 256, 3).tolist()), (left, top, left + width, top + height))
    return image


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def hash_of(data):
    return perceptual_hash(decode(data, (64, 64))[0])


CHANGES = {
    "jpeg 50": lambda image: saved(image, "JPEG", quality=50),
    "webp 50": lambda image: saved(image, "WEBP", quality=50),
    "half": lambda image: saved(image.resize((80, 80), Image.Resampling.LANCZOS)),
    "double jpeg": lambda image: saved(image.resize((320, 320), Image.Resampling.BICUBIC), "JPEG", quality=80),
    "squeezed": lambda image: saved(image.resize((160, 120), Image.Resampling.BILINEAR)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_near_and_other_pictures_far(change):
    images = [picture(seed) for seed in range(60)]
    hashes = [hash_of(saved(image)) for image in images]
    copies = [hash_of(CHANGES[change](image)) for image in images]
    apart = [(one ^ other).bit_count() for one, other in zip(hashes, copies, strict=True)]
    assert np.mean(np.array(apart) <= 8) >= 0.99
    others = [(hashes[a] ^ hashes[b]).bit_count() for a in range(60) for b in range(a)]
    assert min(others) > 8


def test_blank_pictures_have_one_hash():
    hashes = {hash_of(saved(Image.new("RGB", (64, 64), colour))) for colour in ("white", "black", (13, 77, 200))}
    assert hashes == {0}


def test_an_index_keeps_the_best_of_each_cluster(tmp_path):
    image = picture(0)
    groups = {
        "small": {"png": saved(image.resize((80, 80))), "txt": b"x"},
        "long": {"png": saved(image), "txt": b"a longer caption"},
        "short": {"png": saved(image), "txt": b"short"},
        "jpeg": {"jpg": saved(image, "JPEG", quality=70), "txt": b"short"},
        "other": {"png": saved(picture(1)), "txt": b"x"},
        "bad": {"png": b"", "txt": b"x"},
    }
    (tmp_path / "a.tar").write_bytes(hostile.shard_of(groups))
    index.build([str(tmp_path / "a.tar")], tmp_path / "index")
    counts = deduplicate(tmp_path / "index")
    assert (counts["rows"], counts["kept"], counts["exact"], counts["near"]) == (5, 2, 1, 2)
    rows = pq.read_table(tmp_path / "index" / DEDUP).to_pylist()
    names = [row["key"] for row in rows]
    assert {row["key"]: names[row["cluster"]] for row in rows} == {
        "small": "long",
        "long": "long",
        "short": "long",
        "jpeg": "long",
        "other": "other",
    }
    make_view(tmp_path / "index", tmp_path / "v.arrow", Recipe(where="not duplicate"))
    view = View(tmp_path / "v.arrow")
    assert [view.row(n)["key"] for n in range(len(view))] == ["long", "other"]
    exact = deduplicate(tmp_path / "index", distance=-1)
    assert (exact["exact"], exact["near"]) == (1, 0)

    # An index that has grown since has no column `duplicate` until it is deduplicated again.
    (tmp_path / "b.tar").write_bytes(hostile.shard_of({"new": groups["other"]}))
    index.build([str(tmp_path / "b.tar")], tmp_path / "index")
    with pytest.raises(ValueError, match="duplicate"):
        make_view(tmp_path / "index", tmp_path / "v.arrow", Recipe(where="not duplicate"))


def test_refusals(tmp_path):
    (tmp_path / "a.tar").write_bytes(hostile.shard_of({"a": hostile.pair("jpg", hostile.JPEG)}))
    index.build([str(tmp_path / "a.tar")], tmp_path / "index", depth="bytes")
    with pytest.raises(ValueError, match="without phash: index its shards again with --depth pixels"):
        deduplicate(tmp_path / "index")
    assert deduplicate(tmp_path / "index", distance=-1)["kept"] == 1
    with pytest.raises(ValueError, match=r"0\.\.16 bits"):
        deduplicate(tmp_path / "index", distance=40)
    with pytest.raises(ValueError, match="holds nothing"):
        deduplicate(tmp_path / "none")
