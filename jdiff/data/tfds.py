"""TensorFlow Datasets as a data set, read at random from ArrayRecord files; TensorFlow itself is not needed.

The feature `image` is used and, where it is a `ClassLabel`, the feature `label`.
"""

import hashlib
from typing import Any

import numpy as np
from PIL import Image

from jdiff.data.drawings import lowest_tenth
from jdiff.data.images import to_square
from jdiff.data.sources import Row, Split


class TFDSSource:
    """The dataset `name` (such as "cifar10" or "coco/2017") on the side `split`, as squares of `size` pixels.

    A dataset that is not in `data_dir` yet is downloaded and prepared there by tfds, which has its own default folder.
    Held out is the dataset's split "test", else "validation"; where it has neither, a row of "train" is held out when
    the SHA-256 of its number lies in the lowest tenth. The fingerprint covers the dataset's name, version, split,
    number of rows and bytes, and `size`.

    Raises ValueError where tfds does not know the dataset or cannot prepare it here, and where it has
    no "train", no feature `image`, or no row on this side of the split.
    """

    def __init__(self, name: str, *, split: Split, size: int, data_dir: str | None = None):
        # Imported here: slow to import, and of no use to the other sources.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.registered import DatasetNotFoundError

        self._name, self._size = name, size
        # Any: tfds declares features and data sources more loosely than they are.
        try:
            builder: Any = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        except DatasetNotFoundError as error:
            raise ValueError(f"tfds has no dataset {name}; its names are listed on its site") from error
        try:
            builder.download_and_prepare()
        except ModuleNotFoundError as error:
            raise ValueError(
                f"tfds dataset {name} is not prepared in {builder.data_dir}, and tfds cannot prepare it here without "
                f"the package {error.name}: prepare it where that is installed, as array_record files"
            ) from error
        info = builder.info
        features = dict(info.features.items())
        if "image" not in features or "train" not in info.splits:
            raise ValueError(
                f"tfds dataset {name} must have a feature image and a split train; it has the features "
                f"{', '.join(features)} and the splits {', '.join(info.splits)}"
            )
        own = next((own for own in ("test", "validation") if own in info.splits), None)
        part = own if split == "held_out" and own else "train"
        self._data = builder.as_data_source(split=part)
        # Where the dataset holds nothing out itself, both sides share its "train".
        keep = range(len(self._data)) if own else self._side(split)
        self._rows = np.asarray(keep, np.int64)
        if not len(self._rows):
            raise ValueError(f"tfds dataset {name} has {len(self._data)} rows in {part} and none on the side {split}")

        label = features.get("label")
        self.class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
        described = (info.full_name, part, own, split, len(self._data), info.splits[part].num_bytes, size)
        self.fingerprint = hashlib.sha256(repr((described, self.class_names)).encode()).hexdigest()

    def _side(self, split: Split) -> list[int]:
        return [row for row in range(len(self._data)) if lowest_tenth(str(row)) == (split == "held_out")]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Row:
        example = self._data[int(self._rows[row])]
        label = int(example["label"]) if self.class_names else 0
        if self.class_names and not 0 <= label < len(self.class_names):
            raise ValueError(f"tfds dataset {self._name}, row {self._rows[row]}: label {label} is no class")
        pixels = np.asarray(example["image"])
        # Greyscale comes as [height, width, 1], which Pillow wants without the last axis.
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        caption = self.class_names[label] if self.class_names else ""
        return {"image": to_square(image, self._size), "label": label, "caption": caption}
