"""Two readers of one format: orientations as Pillow turns them, and transparent samples of every PNG as white."""

import io
import itertools
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from jdiff.data import FolderSource
from jdiff.data.decode import decode
from jdiff.data.headers import read_header
from tests.data import hostile
from tests.data.test_bounds import chunk, png

SHORTS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 1: "B", 2: "B", 7: "B"}
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
pytestmark = pytest.mark.filterwarnings("ignore:Metadata Warning", "ignore:Possibly corrupt", "ignore:Truncated")


def tiff(value, kind=3, order="<", *, count=1, other=()):
    """A TIFF block with the orientation, behind other tags."""
    data = struct.pack(order + SHORTS[kind], value) * count
    entries = [struct.pack(order + "HHII", tag, 4, 1, 7) for tag in other]
    where = 8 + 2 + 12 * (len(entries) + 1) + 4
    field = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "I", where)
    entries.append(struct.pack(order + "HHI", 0x0112, kind, count) + field)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return mark + struct.pack(order + "I", 8) + directory + (data if len(data) > 4 else b"")


def with_metadata(form, exif=b"", xmp=b""):
    options = {"exif": b"Exif\0\0" + exif} if exif else {}
    if xmp and form == "PNG":
        return hostile.encoded(PIXELS, "PNG", **options).replace(
            b"\0\0\0\0IEND", chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + b"\0\0\0\0IEND"
        )
    return hostile.encoded(PIXELS, form, **options, **({"xmp": xmp} if xmp else {}))


def check(data, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        image, size = decode(data, (64, 64))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert size == expected.size
    if form != "PNG":  # whose metadata may stand behind the pixels
        assert read_header(io.BufferedReader(io.BytesIO(data)))[1:3] == expected.size
    return size


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientations_of_every_type_are_those_of_pillow(form, order):
    sizes = {
        (value, kind): check(with_metadata(form, tiff(value, kind, order)), form)
        for value, kind in itertools.product(range(10), SHORTS)
    }
    assert sizes[6, 4] == sizes[6, 3] == (16, 24) and sizes[6, 1] == sizes[9, 3] == sizes[1, 4] == (24, 16)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_orientations_elsewhere_are_those_of_pillow(form):
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
    for value in range(10):
        check(with_metadata(form, xmp=xmp % value), form)
    assert check(with_metadata(form, tiff(1), xmp % 6), form) == (24, 16)
    assert check(with_metadata(form, tiff(6, other=(0x0100, 0x0101)), xmp % 1), form) == (16, 24)
    check(with_metadata(form, tiff(6, count=2)), form)
    check(with_metadata(form, tiff(6, 12, ">", count=3)), form)
    for cut in range(8, len(tiff(6, 12)), 3):
        check(with_metadata(form, tiff(6, 12)[:cut]), form)


def test_segments_of_a_jpeg_behind_its_frame_count():
    plain = hostile.encoded(PIXELS, "JPEG")
    segment = lambda content: b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    exif = segment(b"Exif\0\0" + tiff(6))
    scan = plain.index(b"\xff\xda")
    assert check(plain[:scan] + exif + plain[scan:], "JPEG") == (16, 24)
    # The first block counts, and a second goes on with it.
    assert check(plain[:2] + segment(b"Exif\0\0" + tiff(3)) + exif + plain[2:], "JPEG") == (24, 16)
    long = tiff(6, 12)
    halves = segment(b"Exif\0\0" + long[:20]) + segment(b"Exif\0\0" + long[20:])
    assert check(plain[:2] + halves + plain[2:], "JPEG") == (16, 24)


def packed(samples, depth):
    """Rows of a PNG, one sample after the other, each behind its filter."""
    bits = "".join(f"{sample:0{depth}b}" for sample in samples)
    return b"\0" + int(bits, 2).to_bytes(len(bits) // 8)


def shown(data):
    return np.asarray(decode(data, (64, 64))[0])[0].tolist()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white(depth):
    samples = [int(sample) for sample in np.resize(np.linspace(0, 2**depth - 1, min(2**depth, 8)), 8)]
    for key in {*samples, 2**16 - 1}:
        found = shown(png(8, 1, depth, 0, before=chunk(b"tRNS", struct.pack(">H", key)), idat=packed(samples, depth)))
        expected = [255 if sample == key else sample * 255 // (2**depth - 1) for sample in samples]
        assert np.abs(np.subtract(found, np.array(expected)[:, None])).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white(depth):
    """Of 16 bits all count, not the high ones alone."""
    wide = 257 if depth == 16 else 1
    samples = [10 * wide, 20 * wide, 30 * wide, 10 * wide, 20 * wide, 31 * wide]
    samples += [10 * wide, 20 * wide, 30 * wide + (depth == 16), 0, 0, 0]
    key = chunk(b"tRNS", struct.pack(">HHH", *samples[:3]))
    for interlaced in (0, 1):
        # Of one row of four pixels, Adam7 has the passes 1, 4 and 6.
        order = [0, 2, 1, 3] if interlaced else range(4)
        rows = [[0], [2], [1, 3]] if interlaced else [list(order)]
        idat = b"".join(packed([s for p in row for s in samples[3 * p : 3 * p + 3]], depth) for row in rows)
        found = shown(png(4, 1, depth, 2, before=key, idat=idat, interlaced=interlaced))
        third = [10, 20, 30] if depth == 16 else [255, 255, 255]
        assert found == [[255, 255, 255], [10, 20, 31], third, [0, 0, 0]]


def test_transparent_entries_of_a_palette_are_white():
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90]))
    for alpha, expected in ((b"\0", [[255] * 3, [40, 50, 60], [70, 80, 90]]), (b"\xff\0", None), (b"\x80\x40\0", None)):
        found = shown(png(3, 1, 8, 3, before=palette + chunk(b"tRNS", alpha), idat=packed([0, 1, 2], 8)))
        if expected is None:
            full = np.array([10, 20, 30, 40, 50, 60, 70, 80, 90]).reshape(3, 3)
            share = np.frombuffer(alpha.ljust(3, b"\xff"), np.uint8)[:, None] / 255
            expected = full * share + 255 * (1 - share)
        assert np.abs(np.subtract(found, expected)).max() <= 1


@pytest.mark.parametrize(("depth", "colour"), [(8, 4), (16, 4), (8, 6), (16, 6)])
def test_an_alpha_channel_shows_white(depth, colour):
    wide = 257 if depth == 16 else 1
    samples = [100 * wide] * (1 if colour == 4 else 3) + [0]
    samples += [100 * wide] * (1 if colour == 4 else 3) + [255 * wide]
    assert shown(png(2, 1, depth, colour, idat=packed(samples, depth))) == [[255] * 3, [100] * 3]


def test_a_folder_shows_what_an_index_shows(tmp_path):
    samples = [0, 1, 2, 3, 0, 1, 2, 3]
    data = png(8, 1, 2, 0, before=chunk(b"tRNS", struct.pack(">H", 1)), idat=packed(samples, 2))
    for n in range(12):
        (tmp_path / f"{n}.png").write_bytes(data)
    assert FolderSource(tmp_path, split="train", size=1)[0]["image"].tolist() in ([[[255] * 3]], [[[0] * 3]])
    centre = np.asarray(decode(data, (1, 1))[0])[0, 3]
    assert (FolderSource(tmp_path, split="train", size=1)[0]["image"][0, 0] == centre).all()
