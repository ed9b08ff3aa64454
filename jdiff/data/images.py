"""Image files: which are opened, and how a picture of any shape becomes a square of `size` pixels.

Only common formats are decoded, and only after `read_header` has found their work bearable: a small file may claim a
picture that does not fit in memory. Transparent parts become white; of an animation the first frame is taken; the
orientation stored by cameras is applied. Deep greyscale (more than 8 bits) is refused, since Pillow would clip it.
"""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
from kornia_rs import imgproc
from PIL import Image

from jdiff.data.decode import decode
from jdiff.data.headers import read_header
from jdiff.data.limits import MAX_FILE, MAX_PIXELS, RejectError
from jdiff.data.walk import path_of

__all__ = ["FORMATS", "MAX_PIXELS", "check_header", "read_square", "scaled", "to_square"]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
"""What is opened, by suffix. The content decides the format; a suffix only says that a file is meant as an image."""

_OPENED = tuple(sorted(set(FORMATS.values())))
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_WORDS = dict.fromkeys(
    ("empty image", "not an image", "text instead of an image", "image format is not read"),
    f"cannot identify one of {', '.join(_OPENED)} in it",
) | {"too many pixels": f"too many pixels, as of a decompression bomb; at most {MAX_PIXELS} of 8 bits are read"}


def check_header(name: str) -> None:
    """Raises ValueError unless the header of the file `name` (`walk.name_of`) is one that `read_square` accepts."""
    with _named(name), open(path_of(name), "rb") as file:
        _check_size(file.fileno())
        read_header(file, _OPENED)
        file.seek(0)
        with Image.open(file, formats=_OPENED) as image:
            if image.mode not in _MODES:
                raise ValueError(
                    f"its pixels are of mode {image.mode}; 8-bit images are read: {', '.join(sorted(_MODES))}"
                )


def read_square(name: str, size: int) -> np.ndarray:
    """The image in the file `name` as `to_square` makes it. Raises ValueError where it cannot be decoded."""
    with _named(name):
        with open(path_of(name), "rb") as file:
            _check_size(file.fileno())
            data = file.read()
        # JPEG can be decoded at a half, a quarter or an eighth, never below what is asked for: 2.5 to 4 times as fast.
        return to_square(decode(data, (size, size), _OPENED)[0], size)


def _check_size(file: int) -> None:
    if (size := os.fstat(file).st_size) > MAX_FILE:
        raise ValueError(f"it has {size} bytes; at most {MAX_FILE} are read")


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
def _named(name: str) -> Iterator[None]:
    """Whatever is wrong with an image becomes a ValueError that names the file."""
    try:
        yield
    except RejectError as reason:
        raise ValueError(f"image {name} cannot be read: {_WORDS.get(str(reason), str(reason))}") from reason
    # Pillow reports damage by a dozen kinds of exception.
    except Exception as error:
        raise ValueError(f"image {name} cannot be read: {error}") from error
