"""Which data a run uses, as plain values."""

import dataclasses

from jdiff.data.folder import FolderSource
from jdiff.data.kinds import SubsetName
from jdiff.data.openmoji import CREDIT, OpenMojiSource
from jdiff.data.sources import Source, Split
from jdiff.data.tfds import TFDSSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Images to train on: OpenMoji drawings, unless a folder or a tfds dataset is named."""

    size: int = 32
    """Side of the square images, in pixels."""
    subset: SubsetName = "people"
    """Which OpenMoji drawings."""
    folder: str | None = None
    """A folder of images, whose subfolders are classes, instead of OpenMoji."""
    tfds: str | None = None
    """A dataset of TensorFlow Datasets, such as "cifar10", instead of OpenMoji."""
    tfds_dir: str | None = None
    """Where tfds keeps its datasets; None for its own default."""
    flip: bool = True
    """Mirror half of the images at random. Turn off where left and right matter, as in letters and flags."""

    @property
    def credit(self) -> str | None:
        """What to print beside pictures of this data, where its licence asks for it."""
        return CREDIT if self.folder is None and self.tfds is None else None

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel; got {self.size}")
        if self.folder is not None and self.tfds is not None:
            raise ValueError(f"folder and tfds exclude each other; got folder={self.folder!r} and tfds={self.tfds!r}")
        if self.tfds_dir is not None and self.tfds is None:
            raise ValueError(f"tfds_dir needs tfds, the name of a dataset; got tfds_dir={self.tfds_dir!r} alone")


def open_source(data: Data, split: Split) -> Source:
    """The side `split` of `data`, checked. Raises ValueError where there is nothing to read, saying what and where."""
    if split not in ("train", "held_out"):
        raise ValueError(f'split must be "train" or "held_out"; got {split!r}')
    if data.folder is not None:
        return FolderSource(data.folder, split=split, size=data.size)
    if data.tfds is not None:
        return TFDSSource(data.tfds, split=split, size=data.size, data_dir=data.tfds_dir)
    return OpenMojiSource(subset=data.subset, split=split, size=data.size)
