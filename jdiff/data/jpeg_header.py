"""Size, orientation and number of scans of a JPEG (ITU-T T.81, annex B).

Segments are read up to the first scan. Where the picture comes in one scan, nothing else is read. A decoder passes over
all coefficients for every further scan, of which a few bytes make one: they are counted, to the end of the file.
"""

import io
import itertools
import struct
from collections.abc import Iterator
from typing import BinaryIO

from jdiff.data.exif import orientation
from jdiff.data.limits import MAX_SCANNED, MAX_SCANS, MAX_SEGMENTS, Header, RejectError, checked, turned

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_MAX_BETWEEN = 2**12
"""Bytes between segments, which decoders skip one by one."""
_BLOCK = 2**16


def read_jpeg(file: BinaryIO) -> Header:
    """The header of a JPEG that is open behind its first two bytes. Raises `RejectError`."""
    exif, xmp, frame, code = b"", b"", b"", None
    between = itertools.repeat(None, _MAX_BETWEEN)
    for _ in range(MAX_SEGMENTS):
        code = _marker(file, between)
        if code is not None and (code == 0x01 or 0xD0 <= code <= 0xD8):
            continue
        length = int.from_bytes(file.read(2)) - 2
        if code in (None, 0xD9, 0xDA) or length < 0:
            break
        if code in _FRAMES and not frame:
            frame = bytes([code]) + file.read(length)
        elif code == 0xE1:
            segment = file.read(length)
            # Further Exif segments go on with the first.
            exif += (segment[6:] if exif else segment) if segment.startswith(b"Exif\0\0") else b""
            xmp = segment[len(_XMP) :] if segment.startswith(_XMP) else xmp
        else:
            file.seek(length, io.SEEK_CUR)
    else:
        raise RejectError("damaged image header")
    if len(frame) < 7:
        raise RejectError("damaged image header")
    height, width, components = struct.unpack(">HHB", frame[2:7])
    header = checked(turned("JPEG", width, height, orientation(exif, xmp)), 0)
    if code == 0xDA and (frame[0] in _PROGRESSIVE or file.read(1) != bytes([components])):
        checked(header, 2 * _coefficients(frame, width * height))
        _count_scans(file, width * height)
    return header


def _marker(file: BinaryIO, between: Iterator[None]) -> int | None:
    """The next marker's code, behind no more bytes than `between` has left; None at the end of the file."""
    marks = False
    while byte := file.read(1):
        if marks and byte not in b"\0\xff":
            return byte[0]
        if marks or byte != b"\xff":
            try:
                next(between)
            except StopIteration:
                raise RejectError("damaged image header") from None
        marks = byte == b"\xff"
    return None


def _coefficients(frame: bytes, pixels: int) -> int:
    """How many there are of all components, by their sampling factors (B.2.2)."""
    factors = [((byte >> 4) or 1) * ((byte & 15) or 1) for byte in frame[8::3]] or [1]
    return pixels * sum(factors) // max(factors)


def _count_scans(file: BinaryIO, pixels: int) -> None:
    scans, last = 1, b""
    while block := file.read(_BLOCK):
        scans += (last + block).count(b"\xff\xda")
        last = block[-1:]
        if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
            raise RejectError("too many scans")
