"""How alike two pictures are when one of them may be a small crop of the other, from thumbnails alone.

A thumbnail is the whole picture at 32 x 32 in grey, and at 8 x 8 in the two differences of colour. Both pictures are
compared as cosine coefficients of their thumbnails, each times its frequency, so that edges count and not the slow
slopes that many pictures share. With A and B those vectors, their distance is

    |A - B|^2 / (mean of |A|^2 and |B|^2 + noise),

0 for equal pictures and about 2 for two that have nothing in common. Of the one picture any stretch may be taken that
lacks up to an eighth of each side: the one is searched for in which the two are alike.
"""

import numpy as np
from PIL import Image

SIDE, COLOUR_SIDE = 32, 8
BYTES = SIDE**2 + 2 * COLOUR_SIDE**2
"""Of a thumbnail."""
FINE = 12
"""Frequencies a side that are compared."""
LARGEST_CUT = 8
"""Sixty-fourths of a side that a crop may lack."""
_NOISE = 400.0
"""Energy of what coding leaves on a blank picture."""
_COLOUR = 10.0
"""Levels of 255 by which colours, averaged over a third of the picture, may differ."""
_CHUNK = 1024

Box = tuple[tuple[float, float], tuple[float, float]]
"""What a crop lacks: (left, right), (top, bottom), as shares of the sides."""


def thumbnail(image: Image.Image) -> bytes:
    """What is kept of a picture of mode RGB to compare it by."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("YCbCr")
    grey, *colours = small.split()
    parts = [grey, *(one.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX) for one in colours)]
    return b"".join(part.tobytes() for part in parts)


def greys(thumbnails: np.ndarray) -> np.ndarray:
    """uint8 [N, BYTES] -> float32 [N, 32, 32]."""
    return thumbnails[:, : SIDE**2].reshape(-1, SIDE, SIDE).astype(np.float32)


def stretch(cut: tuple[float, float], count: int, side: int = SIDE) -> np.ndarray:
    """[count, side]: the lowest cosine coefficients of a row of pixels without the shares `cut` at its two ends."""
    places = cut[0] * side + (np.arange(side) + 0.5) * (1 - sum(cut)) - 0.5
    linear = np.maximum(0, 1 - np.abs(np.clip(places, 0, side - 1)[:, None] - np.arange(side)))
    cosines = np.cos(np.pi / side * (np.arange(side) + 0.5) * np.arange(count)[:, None]) * np.sqrt(2 / side)
    cosines[0] /= np.sqrt(2)
    return (cosines @ linear).astype(np.float32)


def detail(grey: np.ndarray, box: Box, count: int) -> np.ndarray:
    """[N, 32, 32] -> [N, count, count]: what of the pictures lies in `box`, as coefficients times their frequency."""
    across, down = (stretch(cut, count) for cut in box)
    return (down @ grey @ across.T) * frequencies(count)


def frequencies(count: int) -> np.ndarray:
    """[count, count], zero for the mean."""
    return np.hypot(np.arange(count)[:, None], np.arange(count)).astype(np.float32)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[..., count, count] twice -> [...]."""
    energy = (a**2).sum((-2, -1)) + (b**2).sum((-2, -1))
    return ((a - b) ** 2).sum((-2, -1)) / (0.5 * energy + _NOISE)


CUTS = [(left / 64, right / 64) for left in range(LARGEST_CUT + 1) for right in range(LARGEST_CUT + 1 - left)]
_STRETCHES = np.stack([stretch(cut, FINE) for cut in CUTS])


def means(thumbnails: np.ndarray, box: Box) -> np.ndarray:
    """Levels of grey and of both differences of colour in `box`: int16 [3, N]."""
    found, start = [], 0
    for side in (SIDE, COLOUR_SIDE, COLOUR_SIDE):
        plane = thumbnails[:, start : start + side**2].reshape(-1, side, side).astype(np.float32)
        across, down = (stretch(cut, 1, side)[0] / np.sqrt(side) for cut in box)
        found.append(down @ plane @ across)
        start += side**2
    return np.round(found).astype(np.int16)


def aligned(one: np.ndarray, other: np.ndarray, boxes: np.ndarray, limit: float) -> np.ndarray:
    """The distance of a crop of `one` from the whole `other`, both thumbnails [N, BYTES]: the first that the search
    finds to be at most `limit`, infinite where there is none and where colours differ. It begins at `boxes` [N, 2]:
    the places in CUTS of what lacks across and down."""
    found = np.full(len(one), np.inf, np.float32)
    for first in range(0, len(one), _CHUNK):
        part = slice(first, first + _CHUNK)
        found[part] = _aligned(one[part], other[part], boxes[part].T.copy(), limit)
    return found


def _aligned(one: np.ndarray, other: np.ndarray, chosen: np.ndarray, limit: float) -> np.ndarray:
    grey, weights = greys(one), frequencies(FINE)
    whole = detail(greys(other), ((0, 0), (0, 0)), FINE)
    across, down = _STRETCHES[chosen]
    best = distance((down @ grey @ across.transpose(0, 2, 1)) * weights, whole)
    # What is far off at the first look, which is a coarse one, and then after each turn, is not looked at again.
    for axis, still in ((0, 4 * limit + 0.3), (1, 3 * limit + 0.2), (0, 2 * limit + 0.1), (1, 2 * limit)):
        left = np.flatnonzero((best > limit) & (best <= still))
        fixed = _STRETCHES[chosen[1 - axis, left]]
        if axis == 0:
            tried = (fixed @ grey[left])[:, None] @ _STRETCHES.transpose(0, 2, 1)
        else:
            tried = _STRETCHES @ (grey[left] @ fixed.transpose(0, 2, 1))[:, None]
        apart = distance(tried * weights, whole[left, None])
        chosen[axis, left] = apart.argmin(1)
        best[left] = apart.min(1)
    good = np.flatnonzero(best <= limit)
    alike = _colours_apart(one[good], other[good], chosen[:, good]) <= _COLOUR
    result = np.full(len(one), np.inf, np.float32)
    result[good[alike]] = best[good[alike]]
    return result


_AVERAGES = {side: np.stack([stretch(cut, 3, side) for cut in CUTS]) / np.sqrt(side) for side in (SIDE, COLOUR_SIDE)}


def _colours_apart(one: np.ndarray, other: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Root mean square of the differences of the lowest coefficients of each channel, of the greatest channel."""
    worst = np.zeros(len(one), np.float32)
    start = 0
    for side in (SIDE, COLOUR_SIDE, COLOUR_SIDE):
        a, b = (
            thumbs[:, start : start + side**2].reshape(-1, side, side).astype(np.float32) for thumbs in (one, other)
        )
        start += side**2
        across, down = _AVERAGES[side][chosen]
        whole = _AVERAGES[side][0]
        apart = down @ a @ across.transpose(0, 2, 1) - whole @ b @ whole.T
        worst = np.maximum(worst, np.sqrt((apart**2).sum((-2, -1))))
    return worst
