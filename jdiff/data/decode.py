"""Bytes of strangers to pixels: 8-bit RGB on white, turned the way it is meant to be shown, or a named reason why not.

Pillow decodes, and only what `read_header` has passed as a JPEG, PNG or WebP of bearable size. Transparent parts become
white, of an animation the first frame is taken, CMYK is converted without a profile, 16-bit greyscale keeps its high
bits, and colour profiles are not applied: pixels are read as sRGB.

A PNG without an alpha channel may name one grey or colour as transparent (PNG specification, 11.3.2.1), at the depth of
its samples. Pillow compares it with 8-bit pixels, so it is compared here.
"""

import io

import numpy as np
from PIL import Image

from jdiff.data.headers import FORMATS, read_header
from jdiff.data.limits import RejectError

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


def decode(
    data: bytes, at_least: tuple[int, int], formats: tuple[str, ...] = FORMATS
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture in `data`, mode RGB, and the (width, height) that it has in full.

    A JPEG is decoded at a half, a quarter or an eighth where that is no smaller than `at_least` (width, height), which
    is 2.5 to 4 times as fast. Raises `RejectError` with the reason.
    """
    header = read_header(io.BytesIO(data), formats)
    width, height = header.width, header.height
    stored = (height, width) if header.orientation > 4 else (width, height)
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            # Another size than the header's is one that nobody has checked.
            if image.size != stored:
                raise RejectError("damaged image header")
            # A PNG's orientation may stand behind its pixels, which are decoded to find it.
            turn = header.orientation if header.format == "JPEG" else image.getexif().get(0x0112, 1)
            if header.format == "JPEG":
                image.draft(None, at_least if turn <= 4 else (at_least[1], at_least[0]))
            plain = _rgb(image, data)
    except RejectError:
        raise
    # Pillow reports damage by a dozen kinds of exception; whatever it is, this example cannot be decoded.
    except Exception as error:
        raise RejectError("image cannot be decoded") from error
    if turn in _TURNS:
        plain = plain.transpose(_TURNS[turn])
    return plain, (stored[1], stored[0]) if turn in (5, 6, 7, 8) else stored


def _rgb(image: Image.Image, data: bytes) -> Image.Image:
    key = image.info.get("transparency")
    if image.format == "PNG" and image.mode != "P" and key is not None:
        return _without_key(image, data, key)
    image.load()
    if image.mode.startswith("I;16") or image.mode == "I":
        return _high_bits(np.asarray(image))
    if image.mode not in _EIGHT_BITS:
        raise RejectError("pixel type is not read")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_bits(grey: np.ndarray) -> Image.Image:
    # Pillow's own conversion clips to 255.
    high = grey.astype(np.uint32) >> 8
    return Image.fromarray(np.minimum(high, 255).astype(np.uint8)).convert("RGB")


def _without_key(image: Image.Image, data: bytes, key: int | tuple[int, int, int]) -> Image.Image:
    """The picture of a PNG with the samples `key` as white."""
    depth = data[24]
    samples = np.asarray(image)
    if image.mode == "RGB" and depth == 16:
        # Pillow keeps the high bytes. Read as if the low bytes came first, the low ones are kept.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
            again.tile = [part._replace(args="RGB;16L") for part in again.tile]
            samples = samples.astype(np.uint16) << 8 | np.asarray(again)
    elif image.mode == "1":
        samples = samples.astype(np.uint8) * 255
    elif image.mode == "L":
        # Pillow spreads samples of two and four bits over 0 to 255.
        key = np.multiply(key, 255 // (2**depth - 1)).tolist()
    clear = samples == np.asarray(key)
    plain = np.array(_high_bits(samples) if image.mode.startswith("I") else image.convert("RGB"))
    plain[clear.all(-1) if clear.ndim == 3 else clear] = 255
    return Image.fromarray(plain)
