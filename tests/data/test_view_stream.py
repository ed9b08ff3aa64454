"""The stream of a view: pure in (seed, step), one for any number of hosts, each row once an epoch, buckets apart."""

import collections
import itertools
import json
import os
import time

import numpy as np
import pytest

from jdiff.data import Data, batches, floats, index, open_source
from jdiff.data.buckets import Buckets, crop
from jdiff.data.filter import Recipe, make_view
from jdiff.data.view import View
from jdiff.data.view_stream import ViewStream, rejected
from tests.data import hostile

SHAPES = Buckets(size=32, step=8)
SIZES = [(40, 40), (80, 40), (40, 80), (50, 44), (300, 40)]
ROWS, BATCH = 101, 24


def build(folder, name, rows=ROWS, weight=None, sizes=SIZES):
    """A view of rows whose captions are their numbers, in two shards."""
    folder.mkdir(exist_ok=True)
    pictures = {size: hostile.encoded(hostile.smooth(*size), "PNG") for size in sizes}
    names = []
    for part in range(2):
        groups = {
            f"{n:04}": {
                "png": pictures[sizes[n % len(sizes)]] + bytes([n % 256, n // 256]),
                "txt": f"{name} {n}".encode(),
                "json": json.dumps({"n": n}).encode(),
            }
            for n in range(part * rows // 2, (part + 1) * rows // 2)
        }
        path = folder / f"{name}{part}.tar"
        path.write_bytes(hostile.shard_of(groups))
        names.append(str(path))
    index.build(names, folder / f"{name}_index")
    make_view(folder / f"{name}_index", folder / f"{name}.arrow", Recipe(weight=weight))
    return folder / f"{name}.arrow"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stream")


@pytest.fixture(scope="module")
def view(folder):
    return build(folder, "plain")


def make(view, **changed):
    return ViewStream([(view, 1)], **({"buckets": SHAPES, "batch_size": BATCH, "seed": 3} | changed))


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_hosts_share_one_global_batch_and_may_change_in_mid_epoch(view):
    stream = make(view)
    for step in (0, 1, 3, 4, 5, 1000):
        whole = stream.batch(step)
        for hosts in (1, 2, 3, 4, 8):
            # Every host opens the view for itself.
            parts = [make(view).batch(step, host=host, hosts=hosts) for host in range(hosts)]
            assert [len(part["index"]) for part in parts] == [BATCH // hosts] * hosts
            assert same(joined(parts), whole)
        np.testing.assert_array_equal(whole["index"], step * BATCH + np.arange(BATCH))


def test_each_row_comes_up_once_an_epoch(view):
    """In each bucket, every run of as many examples as it has rows has them all; and buckets keep their shares."""
    stream = make(view)
    plans = [stream.plan(step) for step in range(ROWS * 2)]
    drawn = np.zeros(ROWS, int)
    by_bucket = collections.defaultdict(list)
    epochs = collections.defaultdict(list)
    for bucket, rows, epoch in plans:
        by_bucket[bucket].extend(rows.tolist())
        epochs[bucket].extend(epoch.tolist())
        np.add.at(drawn, rows, 1)
    assert sorted(by_bucket) == sorted({*SHAPES.assign(*np.array(SIZES).T).tolist()})
    for bucket, rows in by_bucket.items():
        pairs = list(zip(epochs[bucket], rows, strict=True))
        assert len(set(pairs)) == len(pairs)
        members = set(rows)
        whole = collections.Counter(epochs[bucket])
        full = [epoch for epoch, count in whole.items() if count == len(members)]
        assert len(full) >= len(whole) - BATCH
        for epoch in full:
            assert {row for e, row in pairs if e == epoch} == members
    # 202 steps of 24 are 48 epochs of 101 rows; an epoch's remainder of a bucket waits for the next.
    assert drawn.min() >= 46 and drawn.max() <= 50


def test_a_step_is_the_same_whatever_was_asked_before(view):
    """Neighbouring batches are worked out together and kept, and what is given away may be changed."""
    used = make(view)
    for step in (40, 3, 41, 3, 10**9, 40, 2, 10**9 + 1, 3):
        bucket, rows, epochs = used.plan(step)
        fresh = make(view).plan(step)
        assert bucket == fresh[0] and rows.tolist() == fresh[1].tolist() and epochs.tolist() == fresh[2].tolist()
        rows[:] = epochs[:] = -1


def test_one_bucket_is_read_once_an_epoch_in_order_of_steps(folder):
    stream = make(build(folder, "square", sizes=[(40, 40)]))
    rows = np.concatenate([stream.plan(step)[1] for step in range(ROWS)]).reshape(BATCH, ROWS)
    assert (np.sort(rows) == np.arange(ROWS)).all()
    assert len({tuple(epoch) for epoch in rows.tolist()}) == BATCH


def test_a_batch_is_of_one_bucket_and_says_what_it_shows(view):
    stream = make(view)
    seen = set()
    for step in range(12):
        batch = stream.batch(step)
        bucket, rows, _ = stream.plan(step)
        width, height = SHAPES.shapes[bucket]
        assert batch["image"].shape == (BATCH, height, width, 3) and batch["image"].dtype == np.float32
        assert batch["image"].min() >= -1 and batch["image"].max() <= 1
        assert batch["caption"].tolist() == [f"plain {row}" for row in rows]
        assert batch["original_size"].tolist() == [list(SIZES[row % len(SIZES)][::-1]) for row in rows]
        seen.add(bucket)
    assert len(seen) > 2


@pytest.mark.parametrize("step", [0, 17, 10**6, 10**12])
def test_resuming_takes_no_time_and_gives_the_same(view, step):
    expected = make(view).batch(step)
    start = time.process_time()
    resumed = make(view).batches(step)
    first = next(resumed)
    assert time.process_time() - start < 1
    assert same(first, expected)
    assert same(next(resumed), make(view).batch(step + 1))


def test_worker_processes_give_the_same(view):
    stream = make(view)
    for step, batch in enumerate(itertools.islice(stream.batches(5, host=1, hosts=2, workers=2), 5), 5):
        assert same(batch, stream.batch(step, host=1, hosts=2))


def test_pictures_lie_where_they_were_until_nobody_refers_to_them(view):
    """Memory of worker processes is used again, but never what a batch, or a part of one, still stands on."""
    stream = make(view)
    taken = stream.batches(0, workers=1, put=lambda batch: batch)
    whole = [next(taken) for _ in range(3)]
    corners = [next(taken)["image"][0, :2] for _ in range(3)]
    places = {next(taken)["image"].ctypes.data for _ in range(30)}
    assert len(places) < 12
    assert not places & {batch["image"].ctypes.data for batch in whole}
    expected = [stream.batch(step)["image"] for step in range(6)]
    for batch, image in zip(whole, expected[:3], strict=True):
        assert batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(floats(batch["image"]), image)
    for corner, image in zip(corners, expected[3:], strict=True):
        np.testing.assert_array_equal(floats(corner), image[0, :2])


def test_more_batches_than_slots_can_be_kept(view):
    stream = make(view, batch_size=2)
    kept = list(itertools.islice(stream.batches(0, workers=1, put=lambda batch: batch), 45))
    for step, batch in enumerate(kept):
        np.testing.assert_array_equal(floats(batch["image"]), stream.batch(step)["image"])


def test_seeds_differ(view):
    rows = [make(view, seed=seed).plan(2)[1].tolist() for seed in range(5)]
    assert len({tuple(order) for order in rows}) == 5


def test_crops_and_flips_depend_on_row_seed_and_epoch(folder):
    view = build(folder, "wide", rows=6, sizes=[(80, 40)])
    square = Buckets(size=32, step=32)
    stream = make(view, buckets=square, batch_size=6)
    shown = collections.defaultdict(set)
    for step in range(8):
        batch = stream.batch(step)
        other = make(view, buckets=square, batch_size=3)
        for place, row in enumerate(batch["row"].tolist()):
            shown[row].add(batch["image"][place].tobytes())
            # The same example of the stream, in a batch of another size.
            half = other.batch(2 * step + place // 3)
            np.testing.assert_array_equal(half["image"][place % 3], batch["image"][place])
            np.testing.assert_array_equal(half["corner"][place % 3], batch["corner"][place])
    assert all(len(crops) >= 6 for crops in shown.values())


def test_a_crop_is_where_it_says(view):
    """The picture's red grows evenly from 0 to 255 over its width, so the colour tells the place."""
    data = hostile.encoded(hostile.smooth(200, 50), "PNG")
    for place in (0.0, 0.3, 0.999):
        for mirrored in (False, True):
            image, original, (top, left) = crop(data, (100, 100), (place, 0.0), mirrored)
            assert image.shape == (100, 100, 3) and original == (50, 200) and top == 0
            begin = 255 * left / 400
            red = image[50, :, 0].astype(float)
            expected = begin + 255 * (np.arange(100) + 0.5) / 400
            if mirrored:
                expected = 255 - expected
            np.testing.assert_allclose(red, expected, atol=3)
            # 150 pixels of the picture are cut away, 300 of the scaled one: all of them at one end, or some at each.
            assert left == abs({0.0: 0, 0.3: 90, 0.999: 300}[place] - 300 * mirrored)


@pytest.mark.parametrize(("size", "step", "ratio"), [(32, 8, 2.0), (512, 64, 2.0), (1024, 64, 4.0), (64, 64, 1.0)])
def test_buckets_have_about_one_area(size, step, ratio):
    buckets = Buckets(size=size, step=step, max_ratio=ratio)
    shapes = buckets.shapes
    assert (size, size) in shapes and {(h, w) for w, h in shapes} == set(shapes)
    assert all(w % step == h % step == 0 and w * h <= size * size for w, h in shapes)
    assert all(max(w, h) <= ratio * min(w, h) for w, h in shapes)
    random = np.random.default_rng(0)
    width, height = random.integers(1, 3000, (2, 500))
    ratios = np.log([w / h for w, h in shapes])
    nearest = np.abs(np.log(width / height)[:, None] - ratios).argmin(1)
    np.testing.assert_array_equal(ratios[buckets.assign(width, height)], ratios[nearest])


def test_weights_are_exact_in_expectation_and_spread_evenly(folder):
    view = build(folder, "heavy", weight="1 + n % 3", sizes=[(40, 40)])
    stream = make(view, batch_size=ROWS)
    epochs = np.stack([np.bincount(stream.plan(step)[1], minlength=ROWS) for step in range(600)])
    weight = 1 + np.arange(ROWS) % 3
    expected = weight * ROWS / weight.sum()
    assert (np.abs(epochs - expected) < 1).all()
    np.testing.assert_allclose(epochs.mean(0), expected, atol=5 * 0.5 / np.sqrt(600))


def test_views_are_mixed_by_weight(folder, view):
    other = build(folder, "other", rows=31)
    stream = ViewStream([(view, 1), (other, 3)], buckets=SHAPES, batch_size=BATCH, seed=0)
    rows = np.concatenate([stream.plan(step)[1] for step in range(800)])
    counts = np.bincount(rows, minlength=132)
    assert abs(counts[101:].sum() / counts.sum() - 0.75) < 0.01
    for part in (counts[:101], counts[101:]):
        # An epoch of 132 has a row a whole number of times and, by chance, once more: a variance of 1/4 at most.
        assert np.abs(part - part.mean()).max() < 5 * np.sqrt(0.25 * counts.sum() / 132)
    assert any(caption.startswith("other") for caption in stream.batch(0)["caption"])


def test_a_row_that_cannot_be_read_shifts_nothing(folder):
    view = build(folder, "spoiled", rows=40)
    expected = [make(view).batch(step) for step in range(8)]
    opened = View(view)
    spoiled = opened.row(7)
    with open(opened.shards[spoiled["shard"]][0], "r+b") as file:
        file.seek(spoiled["offset"] + 60)
        file.write(b"\0\1\2\3")
    found = [make(view).batch(step) for step in range(8)]
    for before, after in zip(expected, found, strict=True):
        hit = before["row"] == 7
        np.testing.assert_array_equal(after["image"][~hit], before["image"][~hit])
        np.testing.assert_array_equal(after["reject"] != "", hit)
        assert 7 not in after["row"]
        # Whenever it comes up, the same row stands in.
        assert len(set(after["row"][hit].tolist())) <= 1
    assert rejected(found) == {"shard has changed": sum((b["row"] == 7).sum() for b in expected)}


def test_a_shard_that_vanishes_is_replaced_and_all_of_them_named(folder):
    view = build(folder, "gone", rows=40)
    first, second = (shard for shard, _ in View(view).shards)
    os.remove(second)
    batch = make(view).batch(0)
    assert set(batch["reject"].tolist()) == {"", "shard cannot be read"}
    assert (batch["row"] < 20).all()
    os.remove(first)
    with pytest.raises(ValueError, match=r"cannot be read: shard cannot be read; the last was of .*gone\d\.tar"):
        make(view).batch(0)


def test_training_takes_a_view_as_any_other_data(view, folder):
    sides = [open_source(Data(view=str(view), size=16), side) for side in ("train", "held_out")]
    captions = [source[row]["caption"] for source in sides for row in range(len(source))]
    assert sorted(captions) == sorted(f"plain {n}" for n in range(ROWS))
    assert 0 < len(sides[1]) < 30 and sides[0].fingerprint != sides[1].fingerprint
    batch = batches(sides[0], batch_size=8, seed=0, flip=True)[3]
    assert batch["image"].shape == (8, 16, 16, 3) and batch.keys() == {"image", "index", "reject"}
    weighted = open_source(Data(view=str(build(folder, "odd", weight="n % 2")), size=16), "train")
    assert all(int(weighted[row]["caption"].split()[1]) % 2 for row in range(len(weighted)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 0}, "at least 1; got 0"),
        ({"seed": -1}, "at least 0; got -1"),
        ({"buckets": None}, "multiple of step"),
        ({"hosts": 5}, "divide batch_size 24"),
        ({"host": 2, "hosts": 2}, "got 2 of 2"),
        ({"step": -1}, "at least 0; got -1"),
        ({"views": []}, "weight above 0"),
    ],
)
def test_refusals(view, change, said):
    with pytest.raises(ValueError, match=said):
        if "buckets" in change:
            change = {"buckets": Buckets(size=30, step=8)}
        views = change.pop("views", [(view, 1)])
        call = {name: change.pop(name) for name in ("host", "hosts", "step") if name in change}
        ViewStream(views, **({"buckets": SHAPES, "batch_size": BATCH, "seed": 3} | change)).batch(
            call.pop("step", 0), **call
        )
    with pytest.raises(ValueError, match="folder, tfds and view exclude each other"):
        Data(view="a", folder="b")


def test_every_byte_has_its_place_in_the_range(tmp_path):
    """A picture of the bucket's own shape is neither scaled nor cropped: its bytes are spread over [-1, 1]."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    pixels[0, 0] = 0, 255, 51
    group = {"png": hostile.encoded(pixels, "PNG"), "txt": b"noise"}
    (tmp_path / "a.tar").write_bytes(hostile.shard_of({"a": group}))
    index.build([str(tmp_path / "a.tar")], tmp_path / "index")
    make_view(tmp_path / "index", tmp_path / "v", Recipe())
    image = make(tmp_path / "v", buckets=Buckets(size=16, step=16), batch_size=2, flip=False).batch(0)["image"]
    np.testing.assert_allclose(image[0, 0, 0], [-1, 1, -0.6], atol=1e-7)
    np.testing.assert_array_equal(np.rint((image[0].astype(float) + 1) * 127.5), pixels)
