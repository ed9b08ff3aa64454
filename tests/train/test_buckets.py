"""Training on a view in several shapes: a batch is of one, each compiles once, and a run goes on as it would have."""

import dataclasses
import json
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import cli
from jdiff.data import Data, batches, floats, open_source, stream, training_batches
from jdiff.data.buckets import Buckets
from jdiff.data.view_stream import ViewStream
from jdiff.train.checkpoint import Checkpoints
from jdiff.train.restore import open_run
from jdiff.train.trainer import assemble
from tests import recipe
from tests.compilations import compilations
from tests.data.test_view_stream import build

SHAPES = {(16, 16, 3), (12, 20, 3), (20, 12, 3)}


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return build(tmp_path_factory.mktemp("buckets"), "plain", rows=80)


def in_buckets(view, **fields):
    data = Data(view=str(view), size=16, bucket_step=4, **fields)
    return dataclasses.replace(recipe.experiment, data=data, batch_size=8)


def read(experiment, start, put):
    source = open_source(experiment.data, "train")
    return training_batches(
        experiment.data, source, batch_size=experiment.batch_size, seed=experiment.seed, start=start, put=put
    )


def test_each_shape_compiles_once(view):
    experiment = in_buckets(view, jitter=0.2)
    trainer = assemble(experiment, 0)
    state, step = trainer.initial(), trainer.step()
    data = read(experiment, 0, lambda batch: {name: batch[name] for name in ("image", "index")})
    seen = []
    with compilations(step.__name__) as made:
        for _ in range(12):
            batch = next(data)
            seen.append(batch["image"].shape[1:])
            state, metrics = step(state, batch | {"index": batch["index"].astype(np.uint32)})
            assert np.isfinite(metrics["loss"])
    assert set(seen) == SHAPES and len(made) == 3
    # The pictures were bytes: the update makes of them what the stream gives without `put`.
    assert batch["image"].dtype == np.uint8
    batch |= {"index": batch["index"].astype(np.uint32)}
    (_, one), (_, other) = (
        step(jax.tree.map(jnp.copy, state), batch | {"image": image})
        for image in (batch["image"], floats(batch["image"]))
    )
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)


def test_it_is_the_stream_of_the_training_side(view):
    experiment = in_buckets(view, jitter=0.2, flip=False)
    expected = ViewStream(
        [(view, 1)],
        buckets=Buckets(size=16, step=4),
        batch_size=8,
        seed=experiment.seed,
        flip=False,
        jitter=0.2,
        split="train",
    )
    data = read(experiment, 5, lambda batch: batch)
    for step in range(5, 9):
        batch = next(data)
        assert batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(floats(batch["image"]), expected.batch(step)["image"])
        np.testing.assert_array_equal(batch["index"], step * 8 + np.arange(8))


@pytest.mark.slow
def test_a_run_goes_on_as_it_would_have(view, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    words = ["train", recipe.__file__, "--data.view", str(view), "--data.size", "16", "--data.bucket-step", "4"]
    words += ["--batch-size", "8", "--steps", "8", "--sample-every", "100"]
    cli.main([*words, "--out", str(one)])
    shutil.copytree(one, other)
    shutil.rmtree(other / "checkpoints" / "8")
    cli.main([*words, "--out", str(other)])
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    states = []
    for directory in (one, other):
        with Checkpoints(directory / "checkpoints") as checkpoints:
            states.append(checkpoints.restore(8, open_run(directory).trainer.abstract))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)
    assert json.loads((one / "config.json").read_text())["data"]["bucket_step"] == 4


@pytest.mark.parametrize("kind", ["rows", "view"])
def test_batches_are_put_ahead_of_use_in_a_thread_of_their_own(view, kind):
    seen = []

    def put(batch):
        seen.append((threading.get_ident(), batch["index"][0]))
        return batch["index"][0]

    if kind == "rows":
        dataset = batches(open_source(Data(size=8, subset="faces"), "train"), batch_size=8, seed=0, flip=True)
        data = stream(dataset, 3, put)
    else:
        data = ViewStream([(view, 1)], buckets=Buckets(size=16, step=4), batch_size=8, seed=0).batches(put=put)
    first = next(data)
    deadline = time.monotonic() + 10
    while len(seen) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert 3 <= len(seen) <= 4 and threading.get_ident() not in {thread for thread, _ in seen}
    assert [index for _, index in seen[:3]] == [first, first + 8, first + 16]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bucket_step": 4}, "bucket_step needs view"),
        ({"bucket_step": 5, "view": "v"}, "bucket_step must divide size 32; got 5"),
        ({"jitter": 0.5}, "jitter needs bucket_step, 32 for squares"),
        ({"jitter": 1.0, "view": "v", "bucket_step": 8}, r"jitter must be in \[0, 1\); got 1.0"),
    ],
)
def test_refusals(fields, said):
    with pytest.raises(ValueError, match=said):
        Data(**fields)


def test_a_step_that_the_network_cannot_take(view):
    experiment = dataclasses.replace(in_buckets(view), data=Data(view=str(view), size=16, bucket_step=2))
    with pytest.raises(ValueError, match=r"data\.bucket_step: 2 is not a multiple of 4"):
        assemble(experiment, 0)
