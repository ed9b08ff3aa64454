"""Orientation of an image from Exif (Exif 2.3, 4.6, tag 0x0112) or XMP (tiff:Orientation), as Pillow reads it.

The first value counts, of any numeric type of TIFF 6.0 and BigTIFF and in either byte order. XMP counts where Exif has
no such tag.
"""

import re
import struct

_XMP = re.compile(rb'tiff:Orientation(="|>)([0-9])')
_ORDERS = {b"II": "<", b"MM": ">"}
_MARKS = {b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"}
_TYPES = {3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q"}
_TEXTS = {1, 2, 7}


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """1 to 8; 1, as stored, where there is none. `exif` begins with "Exif" or with TIFF's header."""
    value = _tag(re.sub(b"^(Exif\0\0){1,2}", b"", exif))
    if value is None and (match := _XMP.search(xmp)):
        value = int(match[2])
    return int(value) if value is not None and value in range(1, 9) else 1


def _tag(tiff: bytes) -> float | None:
    """The value of the tag, 0 for one that is text, None where there is no tag."""
    if tiff[:4] not in _MARKS:
        return None
    order, big = _ORDERS[tiff[:2]], b"+" in tiff[:4]
    try:
        return _entry(tiff, order, big)
    except (struct.error, ZeroDivisionError):
        return None


def _entry(tiff: bytes, order: str, big: bool) -> float | None:
    # Pillow reads an Exif block's header in eight bytes and BigTIFF's directory at the offset in them.
    at, counts, layout, inline = (8, "Q", "HHQ8s", 8) if big else (4, "H", "HHI4s", 4)
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), tiff, at)
    (count,) = struct.unpack_from(order + counts, tiff, start)
    first, width = start + struct.calcsize(order + counts), struct.calcsize(order + layout)
    for place in range(first, min(first + width * count, len(tiff)), width):
        tag, kind, number, field = struct.unpack_from(order + layout, tiff, place)
        if tag != 0x0112 or not number:
            continue
        if kind in _TEXTS:
            return 0
        if kind in _TYPES:
            values = order + _TYPES[kind]
            long = struct.calcsize(values) * number > inline
            (address,) = struct.unpack(order + ("Q" if big else "I"), field)
            value, *divisor = struct.unpack_from(values, tiff if long else field, address if long else 0)
            return value / divisor[0] if divisor else value
    return None
