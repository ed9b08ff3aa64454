"""Image files: which are opened, and how a picture of any shape becomes a square of `size` pixels.

Only common formats are decoded, and only after the header's dimensions are known: a small file may claim a picture
that does not fit in memory. Transparent parts become white; of an animation the first frame is taken; the orientation
stored by cameras is applied. Deep greyscale (more than 8 bits) is refused, since Pillow would clip it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from kornia_rs import imgproc
from PIL import Image, ImageOps

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
"""What is opened, by suffix. The content decides the format; a suffix only says that a file is meant as an image."""

MAX_PIXELS = 2**26
"""Larger pictures (67 million pixels, 8192 x 8192) are refused."""

_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def check_header(path: Path) -> None:
    """Raises ValueError, naming `path`, unless its header is that of an image that `read_square` accepts."""
    with _opened(path):
        pass


def read_square(path: Path, size: int) -> np.ndarray:
    """The image at `path` as `to_square` makes it. Raises ValueError, naming `path`, where it cannot be decoded."""
    with _opened(path) as image:
        # JPEG can be decoded at a half, a quarter or an eighth, never below what is asked for: 2.5 to 4 times as fast.
        image.draft(None, (size, size))
        return to_square(ImageOps.exif_transpose(image), size)


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """The centre square of `image` on white, resized with antialiasing: uint8 [size, size, 3]."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return scaled(image.crop((left, top, left + side, top + side)), (size, size))


def scaled(image: Image.Image, shape: tuple[int, int]) -> np.ndarray:
    """`image`, of mode RGB, at `shape` (width, height): uint8 [height, width, 3].

    The kernel is bicubic (a = -0.5) and is widened where it shrinks, so that nothing aliases; beyond the edge its
    pixels repeat. The bits do not depend on how many threads there are.
    """
    width, height = shape
    return np.asarray(imgproc.resize(np.asarray(image), (height, width), "bicubic"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """`path` with its header read; what Pillow raises inside becomes a ValueError that names the file."""
    try:
        with Image.open(path, formats=tuple(set(FORMATS.values()))) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"it has {width} x {height} pixels; at most {MAX_PIXELS} are read")
            if image.mode not in _MODES:
                raise ValueError(
                    f"its pixels are of mode {image.mode}; 8-bit images are read: {', '.join(sorted(_MODES))}"
                )
            yield image
    # Pillow reports damage as OSError, SyntaxError or ValueError, by format, and a huge header by an error of its own.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {path} cannot be read: {error}") from error
