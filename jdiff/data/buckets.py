"""Buckets: the few static shapes that pictures of every shape are cropped to, and how.

A picture goes to the bucket whose aspect ratio is nearest to its own, on a logarithmic scale, is scaled until it covers
the bucket, and the rest is cropped away. Shapes are multiples of `step` with about the area of a square (NovelAI,
"Aspect ratio bucketing", 2022). Where the crop lies, and whether it is mirrored, is drawn from (row, seed, epoch). What
was lost is told to the network, as in SDXL (2307.01952, section 2.2): size in full, and the crop's corner.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from jdiff.data.decode import decode
from jdiff.data.images import scaled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buckets:
    """Shapes of about `size` x `size` pixels whose sides are multiples of `step`; step = size is the square alone."""

    size: int
    step: int
    max_ratio: float = 2.0
    """Of the longer side to the shorter."""

    def __post_init__(self):
        if self.size < 1 or self.step < 1 or self.size % self.step:
            raise ValueError(f"size must be a multiple of step, both positive; got {self.size} and {self.step}")
        if self.max_ratio < 1:
            raise ValueError(f"max_ratio must be at least 1; got {self.max_ratio}")

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each bucket, from the tallest to the widest."""
        found = set()
        for side in range(self.step, self.size + 1, self.step):
            other = self.size**2 // side // self.step * self.step
            if other <= self.max_ratio * side:
                found |= {(side, other), (other, side)}
        return tuple(sorted(found, key=lambda shape: (shape[0] / shape[1], shape)))

    def assign(self, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        """The number of each picture's bucket in `shapes`."""
        return nearest_shape(self.shapes, width, height)


def nearest_shape(shapes: Sequence[tuple[int, int]], width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Which of `shapes`, (width, height) each from the tallest to the widest, is nearest to each picture's."""
    ratios = np.log([shape[0] / shape[1] for shape in shapes])
    middles = (ratios[1:] + ratios[:-1]) / 2
    return np.searchsorted(middles, np.log(width / height))


class Crop(NamedTuple):
    """A picture in its bucket's shape, and what SDXL tells the network of it: (height, width) and (top, left)."""

    image: np.ndarray
    original_size: tuple[int, int]
    corner: tuple[int, int]


def crop(data: bytes, shape: tuple[int, int], place: tuple[float, float], mirrored: bool) -> Crop:
    """The picture encoded in `data` in `shape` (width, height): uint8 [height, width, 3].

    `place`, two numbers in [0, 1), says where between left and right, top and bottom, the crop lies. The corner is in
    pixels of the scaled picture and of its mirror image where that is shown. Raises `RejectError`.
    """
    image, whole = decode(data, shape)
    scale = max(shape[0] / image.width, shape[1] / image.height)
    # The part that is shown, in whole pixels of the picture as it was decoded.
    width, height = (max(round(side / scale), 1) for side in shape)
    spare = image.width - width, image.height - height
    left, top = (int(where * (rest + 1)) for where, rest in zip(place, spare, strict=True))
    shown = image.crop((left, top, left + width, top + height))
    if mirrored:
        shown, left = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT), spare[0] - left
    return Crop(scaled(shown, shape), (whole[1], whole[0]), (round(top * scale), round(left * scale)))


def jitter(pixels: np.ndarray, draws: Sequence[float], strength: float) -> np.ndarray:
    """Pixels uint8 [height, width, 3] with brightness, contrast and saturation, in this order, each times a factor.

    The factors are evenly in [1 - strength, 1 + strength]; `draws`, three numbers in [0, 1), say where.
    """
    image = Image.fromarray(pixels)
    for enhance, draw in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), draws, strict=True):
        image = enhance(image).enhance(1 + strength * (2 * draw - 1))
    return np.asarray(image)
