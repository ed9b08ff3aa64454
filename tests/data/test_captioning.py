"""Captions on their way into a batch: templates, tags, swaps and dropout, drawn from row, epoch and seed alone."""

import collections
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jdiff.data import index
from jdiff.data.buckets import Buckets, jitter
from jdiff.data.captions import Captioning, swap, tags_of
from jdiff.data.filter import Recipe, make_view
from jdiff.data.view import View
from jdiff.data.view_stream import ViewStream
from tests.data import hostile

TAGS = [["man", "hat", "oil painting"], ["woman"], ["oil painting"], [], ["dog, small", "man"], ["hat", "cat"]]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioning")
    picture = hostile.encoded(hostile.smooth(40, 40), "PNG")
    groups = {
        f"{n}": {
            "png": picture + bytes([23 + n]),  # by its SHA-256, the one that ends in 26 is held out
            "txt": f"picture {n} of a man".encode(),
            "json": json.dumps({"tags": tags}).encode(),
        }
        for n, tags in enumerate(TAGS)
    }
    (folder / "a.tar").write_bytes(hostile.shard_of(groups))
    index.build([str(folder / "a.tar")], folder / "index", depth="bytes")
    return folder / "index"


@pytest.fixture(scope="module")
def view(indexed):
    make_view(indexed, indexed.parent / "view.arrow", Recipe(tags="tags"))
    return indexed.parent / "view.arrow"


def stream(view, batch_size=6, seed=0, **options):
    return ViewStream([(view, 1)], buckets=Buckets(size=16, step=16), batch_size=batch_size, seed=seed, **options)


def by_row(view, steps=1, **options):
    """The captions that each row is shown with."""
    shown = collections.defaultdict(list)
    for step in range(steps):
        batch = stream(view, **options).batch(step)
        for row, caption in zip(batch["row"].tolist(), batch["caption"].tolist(), strict=True):
            shown[row].append(caption)
    return shown


def test_templates_take_the_tags_that_a_row_has(view):
    captioning = Captioning(templates=("a photo of {tags}",), styles=("oil painting",))
    plain = "picture {} of a man".format
    assert by_row(view, captioning=captioning) == {
        0: ["a photo of man, hat"],
        1: ["a photo of woman"],
        2: [plain(2)],
        3: [plain(3)],
        4: ["a photo of dog, small, man"],
        5: ["a photo of hat, cat"],
    }
    styled = Captioning(templates=("{caption}, {style}", "{{{caption}}}"), styles=("oil painting",))
    shown = by_row(view, 40, captioning=styled)
    assert set(shown[0]) == {plain(0) + ", oil painting", "{" + plain(0) + "}"}
    assert set(shown[1]) == {"{" + plain(1) + "}"}
    assert 8 <= sum(caption.startswith("{") for caption in shown[0]) <= 32


def test_the_order_of_tags_is_drawn_evenly(view):
    shown = by_row(view, 60, captioning=Captioning(templates=("{tags}",), shuffle_tags=True))
    assert len(set(shown[0])) == 6 and all(sorted(c.split(", ")) == sorted(TAGS[0]) for c in shown[0])
    assert 15 <= shown[5].count("cat, hat") <= 45


def test_what_is_drawn_hangs_on_row_epoch_and_seed_alone(view):
    captioning = Captioning(swaps=(("man", "woman"),), dropout=0.3)
    one = stream(view, captioning=captioning)
    three = stream(view, batch_size=3, captioning=captioning)
    for step in range(8):
        batch = one.batch(step)
        parts = [three.batch(2 * step + half) for half in range(2)]
        assert batch["row"].tolist() == [row for part in parts for row in part["row"].tolist()]
        assert batch["caption"].tolist() == [caption for part in parts for caption in part["caption"].tolist()]
    shown = by_row(view, 60, captioning=captioning)
    assert all(
        set(captions) == {"", f"picture {n} of a man", f"picture {n} of a woman"} for n, captions in shown.items()
    )
    dropped = np.mean([caption == "" for captions in shown.values() for caption in captions])
    assert abs(dropped - 0.3) < 4 * np.sqrt(0.21 / 360)
    assert shown != by_row(view, 60, seed=1, captioning=captioning)
    assert by_row(view, captioning=Captioning(dropout=1.0)) == {n: [""] for n in range(6)}


def test_swapped_words_agree_and_groups_are_independent():
    groups = (("man, his", "woman, her"), ("red", "blue"))
    captioning = Captioning(swaps=groups)
    seen = collections.Counter(captioning.apply("His red hat: a MAN of Mannheim", [], row, 0) for row in range(800))
    assert set(seen) == {
        "His red hat: a Man of Mannheim",
        "His blue hat: a Man of Mannheim",
        "Her red hat: a Woman of Mannheim",
        "Her blue hat: a Woman of Mannheim",
    }
    assert all(abs(count - 200) < 4 * np.sqrt(150) for count in seen.values())
    with pytest.raises(ValueError, match="equally many words"):
        swap("a", 0, 0, ["man, his", "woman"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, []),
        (" a, b c ,,a", ["a", "b c"]),
        ('["x, y", "z", "z", 3, ""]', ["x, y", "z"]),
        ("[broken, json", ["[broken", "json"]),
        ("[" * 100_000, ["[" * 100_000]),
    ],
)
def test_tags(text, expected):
    assert tags_of(text) == expected


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("templates", ("a photo",), "got 'a photo'"),
        ("templates", ("{colour}",), "got '{colour}'"),
        ("templates", ("{caption",), "cannot be read"),
        ("templates", ("{caption.__class__}",), "got '{caption.__class__}'"),
        ("dropout", 1.5, r"in \[0, 1\]; got 1.5"),
        ("swaps", (("man",),), "at least two"),
    ],
)
def test_refusals(field, value, said):
    with pytest.raises(ValueError, match=said):
        Captioning(**{field: value})


def test_fingerprints_follow_what_is_drawn(view):
    options = [{}, {"seed": 1}, {"jitter": 0.1}, {"captioning": Captioning(dropout=0.1)}, {"flip": False}]
    options += [{"split": "train"}, {"batch_size": 3}]
    marks = [stream(view, **option).fingerprint for option in options]
    assert len(set(marks)) == len(marks) and stream(view).fingerprint == marks[0]


def written(path, rows, names=("shard", "key", "caption")):
    pq.write_table(pa.table({name: [row[n] for row in rows] for n, name in enumerate(names)}), path)
    return path


def test_captions_of_a_model_replace_those_of_the_index(indexed, tmp_path):
    shard = str(indexed.parent / "a.tar")
    rows = [(shard, "1", "a new <b>one</b>"), (shard, "2", None), (shard, "3", "  "), (shard, "none", "of nothing")]
    rows += [("elsewhere.tar", "4", "of another shard"), (shard, "5", "a\0b")]
    file = written(tmp_path / "new.parquet", rows)
    made = make_view(indexed, tmp_path / "v.arrow", Recipe(captions=file, repairs=("html",)))
    view = View(tmp_path / "v.arrow")
    captions = {row["key"]: row["caption"] for row in map(view.row, range(len(view)))}
    assert captions == {n: f"picture {n} of a man" for n in "024"} | {"1": "a new one"}
    assert (made["recaptioned"], made["rejected: empty caption"], made["rejected: caption has a NUL"]) == (1, 1, 1)
    assert view.counts == {name: made[name] for name in view.counts} and view.counts["rows"] == 4
    only = make_view(indexed, tmp_path / "w.arrow", Recipe(captions=file, where="recaptioned and key < '2'"))
    assert only["rows"] == 1
    other = written(tmp_path / "other.parquet", [(shard, "1", "another")])
    marks = {make_view(indexed, tmp_path / "x.arrow", Recipe(captions=f))["fingerprint"] for f in (file, other, None)}
    assert len(marks) == 3


@pytest.mark.parametrize(
    ("rows", "names", "said"),
    [
        ([("a", "b", "c")] * 2, ("shard", "key", "caption"), "one caption an example; a, b has more"),
        ([("a", "b", "c")], ("shard", "key", "text"), "lacks caption among shard, key, text"),
        ([("a", "b", 3)], ("shard", "key", "caption"), "of text; it lacks caption"),
        ([("a", "b", "c")], ("shard", "key", "caption"), "none of them is of a row that is chosen"),
    ],
)
def test_captions_that_do_not_fit(indexed, tmp_path, rows, names, said):
    with pytest.raises(ValueError, match=said):
        make_view(indexed, tmp_path / "v.arrow", Recipe(captions=written(tmp_path / "new.parquet", rows, names)))
    assert not (tmp_path / "v.arrow").exists()


def test_what_is_no_table_of_captions(indexed, tmp_path):
    (tmp_path / "new.parquet").write_bytes(b"PAR1 and no more")
    for name in ("new.parquet", "none.parquet"):
        with pytest.raises(ValueError, match=f"{name} must be a Parquet file"):
            make_view(indexed, tmp_path / "v.arrow", Recipe(captions=tmp_path / name))


def test_colours_change_as_they_are_defined():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    wide = pixels.astype(float)
    luma = np.round(wide @ [0.299, 0.587, 0.114])
    cases = {
        (1.0, 0.5, 0.5): 1.4 * wide,
        (0.0, 0.5, 0.5): 0.6 * wide,
        (0.5, 1.0, 0.5): luma.mean() + 1.4 * (wide - luma.mean()),
        (0.5, 0.5, 0.0): luma[..., None] + 0.6 * (wide - luma[..., None]),
        (0.5, 0.5, 0.5): wide,
    }
    for draws, expected in cases.items():
        np.testing.assert_allclose(jitter(pixels, draws, 0.4), expected.clip(0, 255), atol=1.01)


def test_colours_hang_on_row_epoch_and_seed_alone(view):
    plain, one = stream(view, flip=False), stream(view, jitter=0.4, flip=False)
    three = stream(view, batch_size=3, jitter=0.4, flip=False)
    means = collections.defaultdict(set)
    for step in range(4):
        batch = one.batch(step)
        assert not np.array_equal(batch["image"], plain.batch(step)["image"])
        parts = [three.batch(2 * step + half)["image"] for half in range(2)]
        np.testing.assert_array_equal(batch["image"], np.concatenate(parts))
        for row, image in zip(batch["row"].tolist(), batch["image"], strict=True):
            means[row].add(float(image.mean()))
    assert all(len(found) == 4 for found in means.values())
    with pytest.raises(ValueError, match=r"jitter must be in \[0, 1\); got 1"):
        stream(view, jitter=1)


def test_one_side_of_the_split_is_drawn_alone(view):
    opened = View(view)
    held = {n for n in range(len(opened)) if opened.row(n)["held_out"]}
    drawn = {row for step in range(9) for row in stream(view, split="train").plan(step)[1].tolist()}
    assert held == {3} and drawn == {0, 1, 2, 4, 5}
    assert {row for step in range(3) for row in stream(view, split="held_out").plan(step)[1].tolist()} == {3}
