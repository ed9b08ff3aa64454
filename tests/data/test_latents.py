"""Encoded latents as training data: what a batch holds, which rows it is of, and what does not fit."""

import collections
import shutil

import numpy as np
import pytest

from jdiff.data import Latents, open_source, training_batches
from jdiff.data.encoded import Encoded
from jdiff.data.view import View
from tests.data import slow_encode
from tests.data.test_view_stream import build

ROWS = 60
SIZES = [(40, 40), (80, 40), (40, 80)]  # one shape in three is a square


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("latents") / "out"
    view = View(build(tmp_path_factory.mktemp("view"), "a", rows=ROWS, sizes=SIZES))
    slow_encode.run(view, out, fits=lambda caption: caption != "a 7")
    return out


def latents(folder, **changes):
    return Latents(**{"folder": str(folder), "pipeline": "none", "size": 4, "channels": 3, "tokens": 3} | changes)


def batches(folder, steps, batch_size=6, start=0, host=0, hosts=1, dropout=0.0, seed=0):
    data = latents(folder)
    stream = training_batches(
        data,
        open_source(data, "train"),
        batch_size=batch_size,
        seed=seed,
        caption_dropout=dropout,
        start=start,
        put=lambda batch: batch,
        host=host,
        hosts=hosts,
    )
    return [next(stream) for _ in range(steps)]


def test_latents_that_were_zeroed_are_replaced_and_counted(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "out")
    for number in (0, 1):
        path = sorted((tmp_path / "out" / "latents").glob("*.tar"))[number]
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 3] + bytes(len(data) - len(data) // 3))
    reasons = collections.Counter()
    with pytest.raises(ValueError, match=r"more than data.max_replaced 0.05 allows: shard has changed \d+"):
        data = latents(tmp_path / "out")
        source = open_source(data, "train")
        for batch in training_batches(data, source, batch_size=6, seed=0, start=0, put=dict):
            reasons.update(batch["reject"].tolist())
            assert np.isfinite(batch["image"]).all() and (batch["image"] != 0).any((1, 2, 3)).all()
    assert reasons["shard has changed"] > 0


def test_a_batch_is_the_encoded_rows_scaled(folder):
    encoded = Encoded(folder)
    by_caption = {}
    for number in range(len(encoded)):
        texts = encoded.text(encoded.row(number)["caption"]) if number != 7 else None
        by_caption[None if texts is None else tuple(texts["pooled"])] = number
    shift, scale = np.array([0.5, 0.0, -0.5]), np.array([2.0, 1.0, 4.0])  # those of slow_encode
    seen = set()
    for batch in batches(folder, 20):
        assert batch["image"].dtype == batch["spread"].dtype == np.float32
        for place in range(6):
            number = by_caption[tuple(batch["pooled"][place])]
            mean, std = encoded.latents(number)
            np.testing.assert_allclose(batch["image"][place] / scale + shift, mean, atol=1e-3)
            np.testing.assert_allclose(batch["spread"][place] / scale, std, rtol=1e-3)
            row, (h, w) = encoded.row(number), batch["image"].shape[1:3]
            told = [row[name] for name in ("height", "width", "top", "left")]
            np.testing.assert_array_equal(batch["time_ids"][place], [*told, 8 * h, 8 * w])
            seen.add((number, (h, w)))
    assert len({shape for _, shape in seen}) == 3
    train = {n for n in range(ROWS) if not encoded.row(n)["held_out"] and n != 7}
    assert {number for number, _ in seen} == train  # 20 batches of 6 are more than two epochs


def test_the_batch_of_a_step_is_the_same_whatever_the_start_and_the_hosts(folder):
    whole = batches(folder, 8)
    for hosts in (2, 3):
        parts = [batches(folder, 3, start=5, host=host, hosts=hosts) for host in range(hosts)]
        for step in range(3):
            for name in whole[0]:
                together = np.concatenate([part[step][name] for part in parts])
                np.testing.assert_array_equal(together, whole[5 + step][name])
    other = batches(folder, 8, seed=1)
    assert any(not np.array_equal(a["pooled"], b["pooled"]) for a, b in zip(whole, other, strict=True))


def test_a_share_of_captions_is_empty(folder):
    empty = Encoded(folder).text("")["pooled"]
    plain, dropped = batches(folder, 50, 12), batches(folder, 50, 12, dropout=0.25)
    bare = [(batch["pooled"] == empty).all(1) for batch in dropped]
    for one, other, without in zip(plain, dropped, bare, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["pooled"][~without], other["pooled"][~without])
        assert (other["text"][without] == Encoded(folder).text("")["text"]).all()
    assert abs(np.concatenate(bare).mean() - 0.25) < 4 * (0.25 * 0.75 / 600) ** 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 5}, r"data\.size 5 and data\.channels 3: .* holds latents of .*4 x 4.*, with 3 channels"),
        ({"channels": 4}, r"data\.size 4 and data\.channels 4: .*, with 3 channels"),
        ({"tokens": 77}, r"data\.tokens 77: the captions of .* have 3"),
    ],
)
def test_what_does_not_fit_is_named(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        open_source(latents(folder, **changes), "train")


def test_what_is_not_encoded_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not encoded, or not to the end"):
        open_source(latents(tmp_path), "train")
    for field, value in (("size", 0), ("channels", 0), ("tokens", -1)):
        with pytest.raises(ValueError, match=f"{field} must be at least"):
            latents(tmp_path, **{field: value})
