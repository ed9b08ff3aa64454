"""Duplicates: pictures with a known distance, planted copies of every kind, what is kept, and what is refused."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jdiff.data import index, near
from jdiff.data.decode import decode
from jdiff.data.dedup import deduplicate, kept_of
from jdiff.data.filter import Recipe, dedup_file, make_view
from jdiff.data.likeness import BYTES, detail, distance, greys, thumbnail
from jdiff.data.near import pairs_alike
from jdiff.data.view import View
from tests.data import hostile

WHOLE = ((0, 0), (0, 0))


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


def thumb(data):
    return np.frombuffer(thumbnail(decode(data, (64, 64))[0]), np.uint8)


def grating(frequency, amplitude):
    """Waves across, as the thumbnail of a grey picture."""
    wave = 128 + amplitude * np.cos(np.pi / 32 * (np.arange(32) + 0.5) * frequency)
    pixels = np.broadcast_to(np.round(wave).astype(np.uint8)[:, None], (32, 32, 3))
    return np.frombuffer(thumbnail(Image.fromarray(pixels)), np.uint8)


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ((5, 100), (5, 100), 0),
        # (a - b)^2 over the mean of a^2 and b^2, and twice the mean over itself where nothing is shared.
        ((5, 100), (5, 50), 0.4),
        ((5, 100), (8, 100), 2),
        ((3, 60), (7, 100), 2),
    ],
)
def test_the_distance_of_gratings_is_known(one, other, apart):
    a, b = (detail(greys(grating(*wave)[None]), WHOLE, 12) for wave in (one, other))
    np.testing.assert_allclose(distance(a, b), apart, atol=5e-3)


CHANGES = {
    "jpeg 50": lambda image, cut: saved(image, "JPEG", quality=50),
    "webp 50": lambda image, cut: saved(image, "WEBP", quality=50),
    "half": lambda image, cut: saved(image.resize((80, 80), Image.Resampling.LANCZOS)),
    "double jpeg": lambda image, cut: saved(image.resize((320, 320), Image.Resampling.BICUBIC), "JPEG", quality=80),
    "squeezed": lambda image, cut: saved(image.resize((160, 120), Image.Resampling.BILINEAR)),
    "middle": lambda image, cut: saved(image.crop((8, 8, 152, 152)), "JPEG", quality=80),
    "corner": lambda image, cut: saved(image.crop((0, 16, 144, 160)), "JPEG", quality=80),
    "one side": lambda image, cut: saved(image.crop((5, 0, 160, 160)), "JPEG", quality=80),
    "anywhere": lambda image, cut: saved(image.crop((*cut, *(cut + 144))), "JPEG", quality=80),
}


@pytest.fixture(scope="module")
def originals():
    return [picture(seed) for seed in range(60)]


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_alike_and_other_pictures_are_not(change, originals):
    random = np.random.default_rng(1)
    copies = [CHANGES[change](image, random.integers(0, 17, 2)) for image in originals]
    thumbs = np.stack([thumb(data) for data in [*map(saved, originals), *copies]])
    order = random.permutation(len(thumbs))
    a, b, apart, _ = pairs_alike(thumbs[order], 0.1)
    found = {tuple(sorted(pair)) for pair in zip(order[a].tolist(), order[b].tolist(), strict=True)}
    assert found == {(n, n + 60) for n in range(60)}
    assert (a < b).all() and len(found) == len(a) and (apart <= 0.1).all()


def test_keys_in_parts_find_what_all_together_do(originals, monkeypatch):
    thumbs = np.stack([thumb(data) for image in originals for data in (saved(image), CHANGES["middle"](image, None))])
    whole = pairs_alike(thumbs, 0.1)
    monkeypatch.setattr(near, "_PART", 100)
    monkeypatch.setattr(near, "_STRETCH", 700)
    for found, expected in zip(pairs_alike(thumbs, 0.1), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_lies_outside_an_eighth_is_no_copy(originals):
    thumbs = np.stack([thumb(saved(one)) for image in originals for one in (image, image.crop((0, 0, 120, 160)))])
    assert len(pairs_alike(thumbs, 0.1)[0]) <= 2


def test_other_colours_are_no_copy(originals):
    """Red and blue change places in one, and grey is left as it was."""
    swapped = []
    for image in originals[:30]:
        y, cb, cr = image.convert("YCbCr").split()
        swapped += [image, Image.merge("YCbCr", (y, cr, cb)).convert("RGB"), image.convert("L").convert("RGB")]
    thumbs = np.stack([thumb(saved(image)) for image in swapped])
    grey = np.concatenate([thumbs[:, :1024], np.full((90, BYTES - 1024), 128, np.uint8)], 1)
    assert len(pairs_alike(thumbs, 0.1)[0]) <= 2
    assert len(pairs_alike(grey, 0.1)[0]) >= 45


def test_blank_pictures_are_alike_where_their_colours_are():
    colours = ["white", "white", (250, 252, 251), "black", (13, 77, 200), (13, 77, 200)]
    blanks = [saved(Image.new("RGB", (64, 64), colour), "JPEG", quality=60) for colour in colours]
    a, b, *_ = pairs_alike(np.stack([thumb(data) for data in blanks]), 0.1)
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == {(0, 1), (0, 2), (1, 2), (4, 5)}


def test_thousands_of_copies_of_one_picture_are_not_all_compared():
    thumbs = np.tile(grating(5, 100), (3000, 1))
    a, b, apart, compared = pairs_alike(thumbs, 0.1)
    assert compared < 3000 * 100
    assert set(kept_of(3000, a, b, apart).tolist()) == {0}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows(count):
    a, *_ = pairs_alike(np.stack([grating(5, 100)] * 2)[:count], 0.1)
    assert len(a) == (count == 2)


def test_what_is_dropped_is_alike_what_is_kept_and_what_is_kept_is_not():
    random = np.random.default_rng(5)
    places = random.random((300, 2))
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    a, b = np.nonzero(np.triu(apart < 0.07, 1))
    keeper = kept_of(300, a, b, apart[a, b])
    kept = np.unique(keeper)
    assert 50 < len(kept) < 250
    np.testing.assert_array_equal(keeper[kept], kept)
    assert (apart[np.arange(300), keeper] < 0.07).all()
    assert (apart[np.ix_(kept, kept)] + np.eye(len(kept)) >= 0.07).all()
    assert (keeper <= np.arange(300)).all()


def test_chains_do_not_become_one_cluster():
    steps = np.arange(7)
    assert kept_of(8, steps, steps + 1, np.ones(7)).tolist() == [0, 0, 2, 2, 4, 4, 6, 6]


def test_of_several_the_nearest_is_kept_then_the_first():
    a, b = np.array([0, 1, 0, 1]), np.array([2, 2, 3, 3])
    assert kept_of(4, a, b, np.array([0.2, 0.1, 0.1, 0.1])).tolist() == [0, 1, 1, 0]


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
    rows = pq.read_table(dedup_file(tmp_path / "index", "pictures")).to_pylist()
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
    with pytest.raises(ValueError, match="without thumbnail: index its shards again with --depth pixels"):
        deduplicate(tmp_path / "index")
    assert deduplicate(tmp_path / "index", distance=-1)["kept"] == 1
    with pytest.raises(ValueError, match=r"0\.\.0\.5, or -1 .* got 40"):
        deduplicate(tmp_path / "index", distance=40)
    with pytest.raises(ValueError, match="holds nothing"):
        deduplicate(tmp_path / "none")


def test_an_index_with_the_columns_of_an_older_one_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(hostile.shard_of({"a": hostile.pair("jpg", hostile.JPEG)}))
    index.build([str(tmp_path / "a.tar")], tmp_path / "index")
    (path,) = (tmp_path / "index").glob("*.parquet")
    table = pq.read_table(path)
    names = ["phash" if name == "thumbnail" else name for name in table.column_names]
    old = table.rename_columns(names).replace_schema_metadata(table.schema.metadata)
    pq.write_table(old, path)
    assert json.loads(pq.read_schema(path).metadata[b"jdiff"])["seen"] == 1
    message = "without the column thumbnail: index its shards again, into a new folder"
    with pytest.raises(ValueError, match=message):
        deduplicate(tmp_path / "index")
    with pytest.raises(ValueError, match=message):
        make_view(tmp_path / "index", tmp_path / "v", Recipe())
