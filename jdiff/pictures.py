"""Pictures to look at: grids of images, noise becoming image, and samples beside their nearest training images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jdiff.atomic_files import replaced


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255, rounded and clipped; what is uint8 already stays."""
    if images.dtype == np.uint8:
        return images
    return np.clip(np.rint((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def tile(images: np.ndarray, columns: int, *, gap: int = 1) -> np.ndarray:
    """Images [n, H, W, 3] in [-1, 1], or uint8, as one uint8 picture, row by row, on white."""
    images = to_uint8(images)
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = image
    return sheet


NOTE = "jdiff"
"""Under which a PNG says what it is."""


def save(picture: np.ndarray, path: Path, *, enlarge: int = 1, note: str | None = None) -> None:
    """Writes a uint8 picture as PNG, whole or not at all, each value as a square of `enlarge` pixels, with a `note` of
    ASCII on what it is. Raises OSError naming the file."""
    said = PngInfo()
    if note is not None:
        said.add_text(NOTE, note)
    picture = picture.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    with replaced(path) as unfinished:
        Image.fromarray(picture).save(unfinished, format="PNG", pnginfo=said)


def enlargement(size: int) -> int:
    """How much an image of this size is enlarged to be looked at: to about 96 pixels."""
    return max(1, 96 // size)


Decode = Callable[[np.ndarray], np.ndarray]
"""What makes images [n, H, W, 3] of samples [n, h, w, c]."""


def trajectory_sheet(
    path: np.ndarray, level: np.ndarray, decode: Decode = lambda samples: samples, columns: int = 10
) -> np.ndarray:
    """Noise becoming image: one row a sample, time to the right.

    `path` [times + 1, n, H, W, C] ends with the samples; `level` [times] is the standard deviation that x is divided by
    to be shown.
    """
    shown = np.concatenate([path[:-1] / np.reshape(level, (-1, 1, 1, 1, 1)), path[-1:]])
    # Grids are sparse where there is only noise to see and dense at the end: more of the end is shown.
    picked = np.unique(((1 - np.linspace(1, 0, columns) ** 2) * (len(path) - 1)).round().astype(int))
    rows = shown[picked].swapaxes(0, 1)  # [n, columns, H, W, C]
    return tile(decode(rows.reshape(-1, *rows.shape[2:])), len(picked))


def nearest(samples: np.ndarray, images: np.ndarray, count: int) -> np.ndarray:
    """The rows of `images` nearest to each sample in squared pixel distance, mirrored or not: integers [n, count]."""
    flat = images.reshape(len(images), -1)

    def distance(queries: np.ndarray) -> np.ndarray:
        queries = queries.reshape(len(queries), -1)
        return (queries**2).sum(1)[:, None] - 2 * queries @ flat.T + (flat**2).sum(1)

    return np.argsort(np.minimum(distance(samples), distance(samples[:, :, ::-1])), axis=1)[:, :count]


def nearest_sheet(
    samples: np.ndarray, images: np.ndarray, decode: Decode = lambda samples: samples, count: int = 4
) -> np.ndarray:
    """One row a sample: the sample, then its nearest training images."""
    found = images[nearest(samples, images, count)]
    rows = np.concatenate([samples[:, None], found], axis=1)
    return tile(decode(rows.reshape(-1, *samples.shape[1:])), count + 1)
