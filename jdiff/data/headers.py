"""Format, width, height and orientation of an image from its first bytes, and what a decoder would need for it.

PNG: the IHDR chunk and those up to the pixels (PNG specification, 11.2.1). JPEG: `jpeg_header`. WebP: the VP8, VP8L or
VP8X chunk (RFC 9649). GIF: up to the first image (GIF89a). BMP: the file's and the bitmap's header. Nothing is decoded
or allocated, so a file that claims more than memory holds, or that takes a decoder more work than its size allows, is
known before a decoder sees it: Pillow's WebP decoder allocates when it opens a file.
"""

import io
import struct
from typing import BinaryIO

from jdiff.data.exif import orientation
from jdiff.data.jpeg_header import read_jpeg
from jdiff.data.limits import MAX_BYTES, MAX_PIXELS, MAX_SEGMENTS, Header, RejectError, checked, turned

__all__ = ["FORMATS", "MAX_PIXELS", "Header", "RejectError", "read_header"]

FORMATS = ("JPEG", "PNG", "WEBP")
"""What shards may hold."""
_OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"\0\0\x01\0": "ICO"}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples a pixel of a PNG, by its colour type."""
_LEAST_CHUNK = 256
"""Mean size below which a PNG of many chunks is none that an encoder wrote."""
_PACKED, _MOST_PACKED = {b"iCCP", b"zTXt", b"iTXt"}, 64
"""Chunks of a PNG that hold a thousand times their size, which Pillow unpacks each up to a megabyte."""
_MAX_RLE = 2**22
"""Pixels of a run-length coded BMP, which Pillow decodes a run at a time."""


def read_header(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Header:
    """The header of the image in `file`. Raises `RejectError` for what is none of `formats`, or too much work."""
    start = file.read(32)
    if not start:
        raise RejectError("empty image")
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(start, file)
    if start.startswith(b"\xff\xd8\xff"):
        file.seek(2)
        return read_jpeg(file)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _webp(start, file)
    if start.startswith(b"GIF8") and "GIF" in formats:
        return _gif(start, file)
    if start.startswith(b"BM") and "BMP" in formats:
        return _bmp(start)
    raise RejectError(_other(start))


def _other(start: bytes) -> str:
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<", b"{")):
        return "text instead of an image"
    if any(start.startswith(magic) for magic in _OTHERS) or start[4:8] == b"ftyp":
        return "image format is not read"
    return "not an image"


def _png(start: bytes, file: BinaryIO) -> Header:
    if len(start) < 26 or start[12:16] != b"IHDR":
        raise RejectError("damaged image header")
    width, height, depth, colour = struct.unpack(">IIBB", start[16:26])
    checked(Header("PNG", width, height), width * height * _CHANNELS.get(colour, 1) * depth // 8)
    # In memory all chunks are looked at, of which Pillow handles each in Python; else those before the pixels.
    exif, whole = b"", isinstance(file, io.BytesIO)
    at, number, packed, pixels, animated = 8, 0, 0, False, False
    while True:
        file.seek(at)
        head = file.read(8)
        pixels |= head[4:] == b"IDAT"
        # Of an animation, only the first frame's chunks are read.
        if len(head) < 8 or head[4:] == b"IEND" or (pixels and (not whole or (animated and head[4:] == b"fcTL"))):
            break
        animated |= head[4:] == b"acTL" and int.from_bytes(file.read(4)) > 1
        if head[4:] == b"eXIf":
            exif = file.read(min(int.from_bytes(head[:4]), 2**16))
        at, number = at + 12 + int.from_bytes(head[:4]), number + 1
        packed += head[4:] in _PACKED
        if (number > MAX_SEGMENTS and number * _LEAST_CHUNK > at) or packed > _MOST_PACKED:
            raise RejectError("damaged image header")
    return turned("PNG", width, height, orientation(exif))


def _webp(start: bytes, file: BinaryIO) -> Header:
    width, height, flags = _webp_size(start)
    checked(Header("WEBP", width, height), 0)
    metadata, at = {}, 12
    # Bits 3 and 2 of VP8X's flags: there is Exif, there is XMP.
    for _ in range(MAX_SEGMENTS if flags & 0x0C else 0):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            break
        size = int.from_bytes(head[4:], "little")
        if head[:4] in (b"EXIF", b"XMP "):
            metadata[head[:4]] = file.read(min(size, 2**20))
        at += 8 + size + size % 2
    return turned("WEBP", width, height, orientation(metadata.get(b"EXIF", b""), metadata.get(b"XMP ", b"")))


def _webp_size(start: bytes) -> tuple[int, int, int]:
    """Width, height, and the flags of VP8X."""
    kind = start[12:16]
    if kind == b"VP8X" and len(start) >= 30:
        width, height = (1 + int.from_bytes(start[at : at + 3], "little") for at in (24, 27))
        return width, height, start[20]
    if kind == b"VP8L" and start[20:21] == b"\x2f" and len(start) >= 25:
        bits = int.from_bytes(start[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), 0
    if kind == b"VP8 " and start[23:26] == b"\x9d\x01\x2a" and len(start) >= 30:
        width, height = struct.unpack("<HH", start[26:30])
        return width & 0x3FFF, height & 0x3FFF, 0
    raise RejectError("damaged image header")


def _gif(start: bytes, file: BinaryIO) -> Header:
    if len(start) < 13:
        raise RejectError("damaged image header")
    width, height, flags = struct.unpack("<HHB", start[6:11])
    file.seek(13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
    blocks = 0
    while (kind := file.read(1)) == b"!":
        file.seek(1, io.SEEK_CUR)
        while size := int.from_bytes(file.read(1)):
            file.seek(size, io.SEEK_CUR)
            blocks += 1
            if blocks > MAX_SEGMENTS:
                raise RejectError("damaged image header")
    frame = file.read(8)
    if kind != b"," or len(frame) < 8:
        raise RejectError("damaged image header")
    left, top, across, down = struct.unpack("<HHHH", frame)
    return checked(Header("GIF", max(width, left + across), max(height, top + down)), 0)


def _bmp(start: bytes) -> Header:
    if len(start) < 26:
        raise RejectError("damaged image header")
    if int.from_bytes(start[14:18], "little") == 12:
        width, height = struct.unpack("<HH", start[18:22])
        return checked(Header("BMP", width, height), 0)
    width, height = struct.unpack("<Ii", start[18:26])
    # 1 and 2 are the run-length codes.
    runs = start[30:31] in (b"\1", b"\2") and width * abs(height) > _MAX_RLE
    return checked(Header("BMP", width, abs(height)), MAX_BYTES + 1 if runs else 0)
