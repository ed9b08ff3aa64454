"""A real, tiny tfds dataset, written as ArrayRecord files and read back through the source."""

import io
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jdiff.data import Data, TFDSSource, batches, open_source


def encoded(number, mode="RGB"):
    """A PNG of which every pixel has the value `number`."""
    buffer = io.BytesIO()
    Image.new(mode, (10, 6), number if mode == "L" else (number,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


class Base(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    SPLITS: ClassVar = {"train": 40, "test": 5}
    FEATURES: ClassVar = {"image": "RGB", "label": True}

    def _info(self):
        features = {}
        if self.FEATURES.get("image"):
            channels = {"RGB": 3, "L": 1}[self.FEATURES["image"]]
            features["image"] = tfds.features.Image(shape=(None, None, channels), encoding_format="png")
        if self.FEATURES.get("label"):
            features["label"] = tfds.features.ClassLabel(names=["even", "odd"])
        features["number"] = tfds.features.Scalar(np.int64)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, rows) for split, rows in self.SPLITS.items()}

    def _generate_examples(self, split, rows):
        for number in range(rows):
            example = {"number": number}
            if self.FEATURES.get("image"):
                example["image"] = encoded(number, self.FEATURES["image"])
            if self.FEATURES.get("label"):
                example["label"] = number % 2
            yield number, example


@pytest.fixture
def write(tmp_path):
    def write(splits, **features):
        class Tiny(Base, skip_registration=True):
            name = "tiny"
            SPLITS = splits
            FEATURES: ClassVar = {"image": "RGB", **features}

        Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
        return str(tmp_path)

    return write


def numbers(source):
    return sorted(int(source[row]["image"][0, 0, 0]) for row in range(len(source)))


def test_its_own_test_split_is_held_out(write):
    folder = write({"train": 40, "test": 5, "validation": 3}, label=True)
    data = Data(tfds="tiny", tfds_dir=folder, size=4)
    train, held_out = open_source(data, "train"), open_source(data, "held_out")
    assert numbers(train) == list(range(40)) and numbers(held_out) == list(range(5))
    assert train.class_names == ("even", "odd")
    row = train[7]
    number = int(row["image"][0, 0, 0])
    assert row["image"].shape == (4, 4, 3) and row["image"].dtype == np.uint8
    assert row["label"] == number % 2 and row["caption"] == ("even", "odd")[number % 2]
    assert train.fingerprint != held_out.fingerprint
    assert open_source(data, "train").fingerprint == train.fingerprint
    assert TFDSSource("tiny", split="train", size=8, data_dir=folder).fingerprint != train.fingerprint
    batch = batches(train, batch_size=4, seed=0, flip=False)[3]
    assert batch["image"].shape == (4, 4, 4, 3) and set(batch["label"]) <= {0, 1}


def test_validation_is_held_out_where_there_is_no_test(write):
    folder = write({"train": 6, "validation": 3})
    source = TFDSSource("tiny", split="held_out", size=4, data_dir=folder)
    assert numbers(source) == [0, 1, 2] and source.class_names == ()


def test_a_tenth_of_train_is_held_out_where_there_is_neither(write):
    folder = write({"train": 100}, image="L")
    train, held_out = (TFDSSource("tiny", split=split, size=4, data_dir=folder) for split in ("train", "held_out"))
    assert sorted(numbers(train) + numbers(held_out)) == list(range(100))
    assert 3 <= len(held_out) <= 20
    assert train.fingerprint != held_out.fingerprint


def test_refusals(write):
    with pytest.raises(ValueError, match="none on the side held_out"):
        TFDSSource("tiny", split="held_out", size=4, data_dir=write({"train": 1}))


def test_a_dataset_without_images_is_refused(write):
    with pytest.raises(ValueError, match="must have a feature image"):
        TFDSSource("tiny", split="train", size=4, data_dir=write({"train": 3}, image=None))


def test_a_dataset_without_train_is_refused(write):
    with pytest.raises(ValueError, match="a split train"):
        TFDSSource("tiny", split="train", size=4, data_dir=write({"test": 3}))


def test_a_name_that_tfds_does_not_know_is_one_short_line():
    with pytest.raises(ValueError, match="tfds has no dataset no_such_thing;") as error:
        TFDSSource("no_such_thing", split="train", size=8)
    assert len(str(error.value)) < 200


def test_preparing_without_what_tfds_needs_for_it(monkeypatch, tmp_path):
    def prepare():
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    class Unprepared:
        data_dir = tmp_path
        download_and_prepare = staticmethod(prepare)

    monkeypatch.setattr(tfds, "builder", lambda *_, **__: Unprepared)
    with pytest.raises(ValueError, match="cannot prepare it here without the package tensorflow"):
        TFDSSource("tiny", split="train", size=8)
