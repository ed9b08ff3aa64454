"""Bytes of strangers to pixels: 8-bit RGB on white, turned the way it is meant to be shown, or a named reason why not.

Pillow decodes, and only what `read_header` has passed as a JPEG, PNG or WebP of bearable size. Transparent parts become
white, of an animation the first frame is taken, CMYK is converted without a profile, 16-bit greyscale keeps its high
bits, and colour profiles are not applied: pixels are read as sRGB.
"""

import io

import numpy as np
from PIL import Image

from jdiff.data.headers import RejectError, read_header

_FORMATS = ("JPEG", "PNG", "WEBP")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def decode(data: bytes, at_least: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """The picture in `data`, mode RGB, and the (width, height) that it has in full.

    A JPEG is decoded at a half, a quarter or an eighth where that is no smaller than `at_least` (width, height), which
    is 2.5 to 4 times as fast. Raises `RejectError` with the reason.
    """
    header = read_header(io.BytesIO(data))
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            turn = header.orientation if header.format == "JPEG" else image.getexif().get(0x0112, 1)
            if header.format == "JPEG":
                image.draft(None, at_least if turn <= 4 else (at_least[1], at_least[0]))
            # Another size than the header's is one that nobody has checked.
            elif image.size != header[1:3]:
                raise RejectError("damaged image header")
            plain = _rgb(image)
    except RejectError:
        raise
    # Pillow reports damage by a dozen kinds of exception; whatever it is, this example cannot be decoded.
    except Exception as error:
        raise RejectError("image cannot be decoded") from error
    width, height = header[1:3]
    if turn in _TURNS:
        plain = plain.transpose(_TURNS[turn])
        if turn > 4 and header.format != "JPEG":
            width, height = height, width
    return plain, (width, height)


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips to 255.
        high = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(np.minimum(high, 255).astype(np.uint8)).convert("RGB")
    if image.mode not in _EIGHT_BITS:
        raise RejectError("pixel type is not read")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
