"""The batch of step n is a pure function of (seed, n); epochs visit every row once; flips depend on position alone."""

import itertools

import numpy as np
import pytest

from jdiff.data import ArraySource, batches, ordered, stream

ROWS, BATCH = 37, 8  # coprime, so that batches cross epochs in every way


def numbered(rows=ROWS, classes=("even", "odd")):
    """Row i has the colour (i, 0, 0) on the left and (i, 255, 0) on the right."""
    images = np.zeros((rows, 4, 6, 3), np.uint8)
    images[..., 0] = np.arange(rows)[:, None, None]
    images[:, :, 3:, 1] = 255
    return ArraySource(images, np.arange(rows) % len(classes) if classes else (), classes)


def row_of(batch):
    return np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)


def mirrored(batch):
    return batch["image"][:, 0, 0, 1] > 0


def rows_of(dataset, steps):
    return np.concatenate([row_of(dataset[step]) for step in range(steps)])


def make(source=None, *, batch_size=BATCH, seed=3, flip=True):
    return batches(source or numbered(), batch_size=batch_size, seed=seed, flip=flip)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


def test_a_batch_is_images_labels_and_positions():
    batch = make()[5]
    assert {name: (value.dtype.name, value.shape) for name, value in batch.items()} == {
        "image": ("float32", (BATCH, 4, 6, 3)),
        "label": ("int32", (BATCH,)),
        "index": ("int64", (BATCH,)),
    }
    assert batch["image"].min() == -1 and batch["image"][..., 1].max() == 1
    np.testing.assert_array_equal(batch["index"], np.arange(5 * BATCH, 6 * BATCH))
    np.testing.assert_array_equal(batch["label"], row_of(batch) % 2)


def test_every_byte_has_its_place_in_the_range():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    image = next(ordered(ArraySource(grey), 1))["image"]
    np.testing.assert_allclose(image[0, ..., 0].ravel(), np.linspace(-1, 1, 256), atol=1e-6)


def test_no_label_without_classes():
    assert make(numbered(classes=()))[0].keys() == {"image", "index"}


@pytest.mark.parametrize("step", [0, 4, 5, 123, 10**6])
def test_batch_is_the_same_however_it_is_reached(step):
    dataset = make()
    dataset[step + 1]  # reading another one first changes nothing
    expected = dataset[step]
    assert_same(expected, dataset[step])
    assert_same(expected, make()[step])
    assert_same(expected, next(stream(make(), step)))
    if step < 200:
        assert_same(expected, next(itertools.islice(stream(make(), 0), step, None)))


@pytest.mark.parametrize("hosts", [1, 2, 3, 6])
def test_the_slices_of_hosts_are_the_batch(hosts):
    whole = make(batch_size=6)[5]
    source = numbered()
    parts = [batches(source, batch_size=6, seed=3, flip=True, host=host, hosts=hosts)[5] for host in range(hosts)]
    assert_same({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)
    for host, count in ((0, 4), (hosts, hosts), (-1, hosts)):
        with pytest.raises(ValueError, match="hosts must divide batch_size 6"):
            batches(source, batch_size=6, seed=3, flip=True, host=host, hosts=count)


def test_stream_neither_skips_nor_repeats():
    positions = [batch["index"] for batch in itertools.islice(stream(make(), 7), 60)]
    np.testing.assert_array_equal(np.concatenate(positions), np.arange(7 * BATCH, 67 * BATCH))


def test_a_resumed_stream_continues_the_interrupted_one():
    whole = list(itertools.islice(stream(make(), 0), 30))
    for batch, resumed in zip(whole[11:], stream(make(), 11), strict=False):
        assert_same(batch, resumed)


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own():
    epochs = rows_of(make(), ROWS)[: BATCH * ROWS].reshape(-1, ROWS)
    assert len(epochs) == BATCH
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert not any((epoch == np.arange(ROWS)).all() for epoch in epochs)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16, 17, 64, 65, 255, 1000])
def test_every_epoch_is_a_permutation_for_any_number_of_rows(rows):
    source = ArraySource(np.zeros((rows, 1, 1, 3), np.uint8), np.arange(rows), [str(row) for row in range(rows)])
    epochs = make(source, batch_size=3 * rows)[1]["label"].reshape(3, rows)
    assert (np.sort(epochs) == np.arange(rows)).all()


def excess(counts, expected):
    """Chi-squared of counts that should be equal, in standard deviations above its mean."""
    return (((counts - expected) ** 2 / expected).sum() - counts.size) / np.sqrt(2 * counts.size)


@pytest.mark.parametrize("rows", [5, 37, 300])
def test_orders_are_uniform(rows):
    """Over 4,000 epochs each row is in each place equally often and, among more than a few, follows each other one."""
    source = ArraySource(np.zeros((rows, 1, 1, 3), np.uint8), np.arange(rows), [str(row) for row in range(rows)])
    order = make(source, batch_size=4000 * rows)[0]["label"].reshape(4000, rows)
    places = np.stack([np.bincount(order[:, place], minlength=rows) for place in range(rows)])
    assert excess(places, 4000 / rows) < 5
    if rows > 8:
        pairs = np.bincount(order[:, 0] * rows + order[:, 1], minlength=rows**2).reshape(rows, rows)
        assert excess(pairs[~np.eye(rows, dtype=bool)], 4000 / rows / (rows - 1)) < 5


def test_seeds_have_orders_of_their_own():
    """Also one epoch apart, where seeds that are added to the epoch's number would coincide."""
    orders = [tuple(epoch) for seed in range(6) for epoch in rows_of(make(seed=seed), ROWS).reshape(-1, ROWS)]
    assert len(set(orders)) == len(orders)


def test_order_depends_on_position_and_not_on_the_batch_size():
    small, large = make(batch_size=3), make(batch_size=12)
    assert_same({k: np.concatenate([small[n][k] for n in range(12)]) for k in small[0]}, {
        k: np.concatenate([large[n][k] for n in range(3)]) for k in large[0]
    })  # fmt: skip


def test_a_batch_may_be_larger_than_the_source():
    rows = row_of(make(numbered(5), batch_size=20)[0]).reshape(4, 5)
    assert (np.sort(rows) == np.arange(5)).all()
    assert (row_of(make(numbered(1), batch_size=4)[2]) == 0).all()


def test_flip_mirrors_about_half_and_only_mirrors():
    dataset, plain = make(batch_size=2000), make(batch_size=2000, flip=False)
    flips = mirrored(dataset[0])
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert not mirrored(plain[0]).any()
    image = plain[0]["image"]
    np.testing.assert_array_equal(dataset[0]["image"], np.where(flips[:, None, None, None], image[:, :, ::-1], image))


def test_flip_depends_on_position_and_seed_alone():
    def flips(source, seed):
        return mirrored(make(source, batch_size=500, seed=seed)[0])

    np.testing.assert_array_equal(flips(numbered(), 0), flips(numbered(11), 0))
    assert 0.4 < (flips(numbered(), 0) != flips(numbered(), 1)).mean() < 0.6


def test_flips_of_neighbours_and_of_epochs_are_independent():
    flips = mirrored(make(numbered(100), batch_size=10_000)[0])
    for lag in (1, 2, 100):
        assert abs((flips[lag:] == flips[:-lag]).mean() - 0.5) < 0.025


def test_ordered_reads_each_row_once_with_a_short_last_batch():
    read = list(ordered(numbered(), BATCH))
    assert [len(batch["index"]) for batch in read] == [8, 8, 8, 8, 5]
    np.testing.assert_array_equal(np.concatenate([row_of(batch) for batch in read]), np.arange(ROWS))
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in read]), np.arange(ROWS))
    assert not any(mirrored(batch).any() for batch in read)


class Empty:
    class_names = ()
    fingerprint = ""

    def __len__(self):
        return 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: make(batch_size=0), "batch_size must be at least 1; got 0"),
        (lambda: make(seed=-1), "seed must be at least 0; got -1"),
        (lambda: batches(Empty(), batch_size=1, seed=0, flip=False), "no rows"),
        (lambda: stream(make(), -1), "start must be at least 0; got -1"),
        (lambda: next(ordered(numbered(), 0)), "batch_size must be at least 1; got 0"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()
