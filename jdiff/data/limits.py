"""Limits on images, and the error of an example that exceeds one or cannot be read."""

from typing import NamedTuple

MAX_PIXELS = 2**26
"""Larger pictures (67 million pixels, 8192 x 8192) are rejected."""
MAX_SIDE = 2**15
MAX_BYTES = 2**28
"""Memory of an image's samples at their own depth, or of the coefficients of a JPEG in several scans."""
MAX_FILE = 2**27
"""Size of an image file in bytes."""
MAX_SCANS = 100
MAX_SCANNED = 2**30
"""Scans of a JPEG times its pixels: a decoder passes over all of them in each scan."""
MAX_SEGMENTS = 2000
"""Segments of a JPEG or chunks of a PNG, WebP or GIF before its pixels."""


class Header(NamedTuple):
    """Format and size of a picture; the sides are those after the orientation is applied."""

    format: str
    width: int
    height: int
    orientation: int = 1


class RejectError(ValueError):
    """An example that is not used; the text is the reason, one of a few, without names or numbers of the example."""


def checked(header: Header, size: int) -> Header:
    """`header`, whose decoder needs `size` bytes. Raises `RejectError` where a limit is exceeded."""
    if not header.width or not header.height:
        raise RejectError("damaged image header")
    if header.width * header.height > MAX_PIXELS or max(header[1:3]) > MAX_SIDE or size > MAX_BYTES:
        raise RejectError("too many pixels")
    return header


def turned(form: str, width: int, height: int, orientation: int) -> Header:
    """The header of a stored picture of these sides."""
    return Header(form, *((height, width) if orientation > 4 else (width, height)), orientation)
