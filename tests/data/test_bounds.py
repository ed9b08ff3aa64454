"""Images that take more work than their size: rejected by their header, in an index and in training."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from jdiff.data import FolderSource, index
from jdiff.data.decode import decode
from jdiff.data.headers import read_header
from jdiff.data.limits import RejectError
from tests.data import hostile


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, *, before=b"", idat=b"", after=b"", interlaced=0):
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(idat)) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def progressive(size, repeats):
    """A progressive JPEG whose last scan comes again and again."""
    data = hostile.encoded(np.full((size, size, 3), 90, np.uint8), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * repeats + data[-2:]


def gif(comments):
    data = hostile.encoded(hostile.smooth(), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    return data[:at] + b"!\xfe" + (b"\xff" + bytes(255)) * comments + b"\0" + data[at:]


def jpeg_with(between):
    """Behind the JFIF segment."""
    return hostile.JPEG[:20] + between + hostile.JPEG[20:]


BOMBS = {
    "repeated scans": (progressive(256, 3000), "too many scans"),
    "a few scans of many pixels": (progressive(8192, 20), "too many scans"),
    "deep colours": (png(8192, 8192, 16, 6, idat=bytes(10**6)), "too many pixels"),
    "deep interlaced": (png(8000, 8000, 16, 6, idat=bytes(10**6), interlaced=1), "too many pixels"),
    "chunks": (png(64, 48, 8, 2, before=chunk(b"prVt", b"") * 300_000), "damaged image header"),
    "chunks behind": (png(64, 48, 8, 2, after=chunk(b"prVt", b"") * 300_000), "damaged image header"),
    "empty data": (png(64, 48, 8, 2, before=chunk(b"IDAT", b"") * 300_000), "damaged image header"),
    "profiles": (
        png(64, 48, 8, 2, before=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**6))) * 1000),
        "damaged image header",
    ),
    "segments": (jpeg_with(b"\xff\xe5\0\2" * 300_000), "damaged image header"),
    "fill": (jpeg_with(b"\xff" * 10**7), "damaged image header"),
    "junk": (jpeg_with(b"\0" * 10**7), "damaged image header"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_work_is_bounded_by_the_header(name):
    data, reason = BOMBS[name]
    start = time.monotonic()
    for read in (lambda: decode(data, (64, 64)), lambda: read_header(io.BufferedReader(io.BytesIO(data)))):
        try:
            read()
        except RejectError as why:
            assert str(why) == reason
        else:
            # From headers alone, what lies behind the pixels is not seen.
            assert name in ("chunks behind", "empty data")
    assert time.monotonic() - start < 20


def test_bombs_are_counted_in_an_index_and_named_in_a_folder(tmp_path):
    groups = {f"{n}": hostile.pair("jpg", data) for n, (data, _) in enumerate(BOMBS.values()) if len(data) < 10**6}
    (tmp_path / "a.tar").write_bytes(hostile.shard_of(groups))
    (part,) = index.build([str(tmp_path / "a.tar")], tmp_path / "index", max_reject_rate=1)
    assert part.used == 0 and part.seen == len(groups)
    for n in range(20):
        (tmp_path / f"{n}.jpg").write_bytes(hostile.JPEG)
    (tmp_path / "bomb.jpg").write_bytes(BOMBS["repeated scans"][0])
    with pytest.raises(ValueError, match=r"image .*bomb\.jpg cannot be read: too many scans"):
        FolderSource(tmp_path, split="train", size=8)


@pytest.mark.parametrize("comments", [1000, 40_000])
def test_a_gif_of_comments_is_refused_before_pillow_joins_them(tmp_path, comments):
    for n in range(20):
        (tmp_path / f"{n}.gif").write_bytes(hostile.encoded(hostile.smooth(), "GIF"))
    (tmp_path / "x.gif").write_bytes(gif(comments))
    if comments < 2000:
        assert len(FolderSource(tmp_path, split="train", size=8)) > 10
        return
    with pytest.raises(ValueError, match=r"x\.gif cannot be read: damaged image header"):
        FolderSource(tmp_path, split="train", size=8)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_thousands_of_frames_one_is_decoded(tmp_path, form):
    frames = [Image.fromarray(np.full((8, 8, 3), n % 200, np.uint8)) for n in range(1500)]
    file = io.BytesIO()
    frames[7].save(file, form, save_all=True, append_images=frames, duration=10, lossless=True)
    for n in range(12):
        (tmp_path / f"{n}.{form.lower()}").write_bytes(file.getvalue())
    start = time.monotonic()
    assert (FolderSource(tmp_path, split="train", size=8)[0]["image"] == 7).all()
    assert time.monotonic() - start < 10


def test_what_people_have_is_not_too_much():
    for data, size in (
        (progressive(512, 0), (512, 512)),
        (png(8192, 8192, 8, 6), (8192, 8192)),
        (png(5000, 5000, 16, 6), (5000, 5000)),
        (jpeg_with(b"\xff" * 100), (64, 48)),
        (hostile.encoded(hostile.smooth(), "JPEG", icc_profile=bytes(500_000)), (64, 48)),
    ):
        assert read_header(io.BytesIO(data))[1:3] == size
