"""Format, width and height of an image from its first bytes, as it is meant to be shown.

PNG: the IHDR chunk (PNG specification, 11.2.1). JPEG: the frame header SOF0 to SOF15 (ITU-T T.81, B.2.2), after which
nothing is read, and the orientation of an Exif segment before it (Exif 2.3, 4.6). WebP: the VP8, VP8L or VP8X chunk
(RFC 9649). Nothing is decoded or allocated, so a file that claims more than memory holds is known before a decoder
sees it: Pillow's WebP decoder allocates when it opens a file.
"""

import io
import struct
from typing import BinaryIO, NamedTuple

MAX_PIXELS = 2**26
"""Larger pictures (67 million pixels, 8192 x 8192) are rejected."""
MAX_SIDE = 2**15
_MAX_SEGMENTS = 2000
_OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"\0\0\x01\0": "ICO"}


class Header(NamedTuple):
    """What a file says of its picture; the sides are those after the orientation is applied."""

    format: str
    width: int
    height: int
    orientation: int = 1


class RejectError(ValueError):
    """An example that is not used; the text is the reason, one of a few, without names or numbers of the example."""


def read_header(file: BinaryIO) -> Header:
    """The header of the image in `file`. Raises `RejectError` for what is no JPEG, PNG or WebP, or too large."""
    start = file.read(32)
    if not start:
        raise RejectError("empty image")
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        header = _png(start)
    elif start.startswith(b"\xff\xd8\xff"):
        file.seek(2)
        header = _jpeg(file)
    elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        header = _webp(start)
    else:
        raise RejectError(_other(start))
    if not header.width or not header.height:
        raise RejectError("damaged image header")
    if header.width * header.height > MAX_PIXELS or max(header[1:3]) > MAX_SIDE:
        raise RejectError("too many pixels")
    return header


def _other(start: bytes) -> str:
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<", b"{")):
        return "text instead of an image"
    if any(start.startswith(magic) for magic in _OTHERS) or start[4:8] == b"ftyp":
        return "image format is not read"
    return "not an image"


def _png(start: bytes) -> Header:
    if len(start) < 24 or start[12:16] != b"IHDR":
        raise RejectError("damaged image header")
    return Header("PNG", *struct.unpack(">II", start[16:24]))


def _webp(start: bytes) -> Header:
    kind = start[12:16]
    if kind == b"VP8X" and len(start) >= 30:
        return Header("WEBP", 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little"))
    if kind == b"VP8L" and start[20:21] == b"\x2f" and len(start) >= 25:
        bits = int.from_bytes(start[21:25], "little")
        return Header("WEBP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 " and start[23:26] == b"\x9d\x01\x2a" and len(start) >= 30:
        width, height = struct.unpack("<HH", start[26:30])
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF)
    raise RejectError("damaged image header")


def _jpeg(file: BinaryIO) -> Header:
    orientation = 1
    for _ in range(_MAX_SEGMENTS):
        marker = file.read(2)
        while marker == b"\xff\xff":
            marker = b"\xff" + file.read(1)
        if len(marker) < 2 or marker[0] != 0xFF:
            break
        code = marker[1]
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            continue
        length = int.from_bytes(file.read(2))
        if length < 2 or code in (0xD9, 0xDA):
            break
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            frame = file.read(5)
            if len(frame) < 5:
                break
            height, width = struct.unpack(">HH", frame[1:])
            return Header("JPEG", *((height, width) if orientation > 4 else (width, height)), orientation)
        if code == 0xE1 and orientation == 1:
            orientation = _orientation(file.read(length - 2))
        else:
            file.seek(length - 2, io.SEEK_CUR)
    raise RejectError("damaged image header")


def _orientation(segment: bytes) -> int:
    """The Exif orientation, 1 to 8; 1, as it stands, where there is none or it cannot be read."""
    tiff = segment[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4]) if segment.startswith(b"Exif\0\0") else None
    if order is None or len(tiff) < 8:
        return 1
    (at,) = struct.unpack(order + "I", tiff[4:8])
    if at + 2 > len(tiff):
        return 1
    (count,) = struct.unpack(order + "H", tiff[at : at + 2])
    for entry in range(at + 2, min(at + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind = struct.unpack(order + "HH", tiff[entry : entry + 4])
        if tag == 0x0112 and kind == 3:
            (value,) = struct.unpack(order + "H", tiff[entry + 8 : entry + 10])
            return value if 1 <= value <= 8 else 1
    return 1
