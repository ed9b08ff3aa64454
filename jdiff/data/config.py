"""Which data a run uses, as plain values."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jdiff.data.folder import FolderSource
from jdiff.data.kinds import SubsetName
from jdiff.data.openmoji import CREDIT, OpenMojiSource
from jdiff.data.pipeline import Batch, batches, stream
from jdiff.data.replaced import Replaced
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
    view: str | None = None
    """A view that `jdiff data filter` made, instead of OpenMoji."""
    bucket_step: int | None = None
    """Train on a view in shapes whose sides are multiples of this and whose area is about that of the square, a batch
    in one of them, cropped at random; None for centre squares alone, `size` for squares cropped at random."""
    flip: bool = True
    """Mirror half of the images at random. Turn off where left and right matter, as in letters and flags."""
    jitter: float = 0.0
    """Strength, below 1, of random changes of brightness, contrast and saturation; needs bucket_step."""
    max_replaced: float = dataclasses.field(default=0.05, metadata={"was": 0.05})
    """Share of a view's rows that may be replaced since they cannot be read; the run stops above it."""

    @property
    def channels(self) -> int:
        """Of an image."""
        return 3

    @property
    def credit(self) -> str | None:
        """What to print beside pictures of this data, where its licence asks for it."""
        return CREDIT if self.folder is self.tfds is self.view is None else None

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel; got {self.size}")
        named = {name: value for name in ("folder", "tfds", "view") if (value := getattr(self, name)) is not None}
        if len(named) > 1:
            told = " and ".join(f"{name}={value!r}" for name, value in named.items())
            raise ValueError(f"folder, tfds and view exclude each other; got {told}")
        if self.tfds_dir is not None and self.tfds is None:
            raise ValueError(f"tfds_dir needs tfds, the name of a dataset; got tfds_dir={self.tfds_dir!r} alone")
        if self.bucket_step is not None and self.view is None:
            raise ValueError(f"bucket_step needs view, a view to train on; got bucket_step={self.bucket_step} alone")
        if self.bucket_step is not None and (self.bucket_step < 1 or self.size % self.bucket_step):
            raise ValueError(f"bucket_step must divide size {self.size}; got {self.bucket_step}")
        _check_share("max_replaced", self.max_replaced)
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be in [0, 1); got {self.jitter}")
        if self.jitter and self.bucket_step is None:
            raise ValueError(f"jitter needs bucket_step, {self.size} for squares; got jitter={self.jitter} without")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
    """Latents to train on, and encodings of captions: what `jdiff data encode` made of a view."""

    folder: str
    """What was encoded, to the end."""
    pipeline: str
    """Folder, or name on the hub, of the autoencoder that made the latents, or of the pipeline that has it and the text
    encoders: for pictures and prompts."""
    size: int = 64
    """Side of the square latents; the pictures are as many times as large as the autoencoder says."""
    channels: int = 4
    """Of the latents."""
    tokens: int = 0
    """Of a caption's encoding; 0 for a network that takes no captions."""
    max_replaced: float = dataclasses.field(default=0.05, metadata={"was": 0.05})
    """Share of the rows that may be replaced since they cannot be read; the run stops above it."""

    @property
    def credit(self) -> str | None:
        """What to print beside pictures of this data."""
        return None

    def __post_init__(self):
        for field, least in (("size", 1), ("channels", 1), ("tokens", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be at least {least}; got {getattr(self, field)}")
        _check_share("max_replaced", self.max_replaced)


def _check_share(field: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{field} must be in [0, 1]; got {share}")


def open_source(data: Data | Latents, split: Split) -> Source:
    """The side `split` of `data`, checked. Raises ValueError where there is nothing to read, saying what and where."""
    if split not in ("train", "held_out"):
        raise ValueError(f'split must be "train" or "held_out"; got {split!r}')
    if isinstance(data, Latents):
        try:
            from jdiff.data.latents import LatentSource
        except ModuleNotFoundError as error:
            raise ValueError(f"latents {data.folder} need the extra `data`: pip install 'jdiff[data]'") from error
        return LatentSource(data.folder, split=split, size=data.size, channels=data.channels, tokens=data.tokens)
    if data.folder is not None:
        return FolderSource(data.folder, split=split, size=data.size)
    if data.tfds is not None:
        return TFDSSource(data.tfds, split=split, size=data.size, data_dir=data.tfds_dir)
    if data.view is not None:
        # Imported here: the extra `data` is needed for views alone.
        try:
            from jdiff.data.view_source import ViewSource
        except ModuleNotFoundError as error:
            raise ValueError(f"view {data.view} needs the extra `data`: pip install 'jdiff[data]'") from error
        return ViewSource(data.view, split=split, size=data.size)
    return OpenMojiSource(subset=data.subset, split=split, size=data.size)


def training_batches(
    data: Data | Latents,
    source: Source,
    *,
    batch_size: int,
    seed: int,
    caption_dropout: float = 0.0,
    start: int,
    put: Callable[[Batch], Any],
    replaced: Replaced | None = None,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Any]:
    """`put` of the batches of steps `start`, start + 1, ... of the training side, `source`, ahead of use: of the slices
    that belong to `host` of `hosts`.

    All batches have one shape or, with `bucket_step` or latents that were encoded so, each the shape of its bucket.
    With `bucket_step` the pictures that `put` is given are uint8, for `floats`. A share `caption_dropout` of encoded
    captions is replaced by that of "". `replaced` counts the rows that stand for others; reading raises ValueError
    where they are too many.
    """
    put = (replaced or Replaced(data.max_replaced)).counting(put, batch_size)
    if isinstance(data, Latents):
        from jdiff.data.latents import LatentSource, LatentStream

        assert isinstance(source, LatentSource)
        latents = LatentStream(source, batch_size=batch_size, seed=seed, caption_dropout=caption_dropout)
        return latents.batches(start, host=host, hosts=hosts, put=put)
    if data.bucket_step is None:
        return stream(
            batches(source, batch_size=batch_size, seed=seed, flip=data.flip, host=host, hosts=hosts), start, put
        )
    from jdiff.data.buckets import Buckets
    from jdiff.data.view_stream import ViewStream

    assert data.view is not None
    shaped = ViewStream(
        [(data.view, 1)],
        buckets=Buckets(size=data.size, step=data.bucket_step),
        batch_size=batch_size,
        seed=seed,
        flip=data.flip,
        jitter=data.jitter,
        split="train",
    )
    return shaped.batches(start, host=host, hosts=hosts, put=put)
