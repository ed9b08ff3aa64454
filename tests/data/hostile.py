"""A set of shards with everything that strangers may put into one, and what is to become of each example."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
"""Noise, so that no format shrinks it and every cut goes through coded data."""


def smooth(width=64, height=48):
    """A picture that JPEG keeps well: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.full_like(x, 64)], -1).astype(np.uint8)


def encoded(pixels, form, mode=None, *, dither=None, **options):
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode, dither=dither) if mode else image).save(file, form, **options)
    return file.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def png_of(width, height, *, idat=b""):
    """A PNG that claims a size, with whatever data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(idat)) + chunk(b"IEND", b"")


JPEG = encoded(smooth(), "JPEG", quality=90)
PNG = encoded(smooth(), "PNG")
GREY16 = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)


def rgba():
    """Red on the left, and nothing, whose hidden colour is blue, on the right."""
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, :32] = (255, 0, 0, 255)
    pixels[:, 32:] = (0, 0, 255, 0)
    return pixels


def animated(form):
    frames = [Image.fromarray(np.full((48, 64, 3), value, np.uint8)) for value in (200, 10)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    return file.getvalue()


# key: (suffix, content, width, height): used, and decoded as a test says.
USED = {
    "plain": ("jpg", JPEG, 64, 48),
    "lossless": ("png", PNG, 64, 48),
    "webp": ("webp", encoded(smooth(), "WEBP", lossless=True), 64, 48),
    "webp_lossy": ("webp", encoded(smooth(), "WEBP", quality=90), 64, 48),
    "progressive": ("jpeg", encoded(smooth(), "JPEG", quality=90, progressive=True), 64, 48),
    "wrong_suffix": ("jpg", PNG, 64, 48),
    "cmyk": ("jpg", encoded(smooth(), "JPEG", "CMYK", quality=95), 64, 48),
    "grey": ("jpg", encoded(smooth(), "JPEG", "L", quality=95), 64, 48),
    "deep_grey": ("png", encoded(GREY16, "PNG"), 64, 48),
    "palette": ("png", encoded(smooth() // 51 * 51, "PNG", "P", dither=0), 64, 48),
    "one_bit": ("png", encoded(smooth(), "PNG", "1"), 64, 48),
    "alpha": ("png", encoded(rgba(), "PNG"), 64, 48),
    "turned": ("jpg", encoded(smooth(), "JPEG", quality=95, exif=exif(6)), 48, 64),
    "turned_png": ("png", encoded(smooth(), "PNG", exif=exif(6)), 48, 64),
    "bad_exif": ("jpg", encoded(smooth(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), 64, 48),
    "bad_profile": ("jpg", encoded(smooth(), "JPEG", quality=95, icc_profile=b"no profile" * 20), 64, 48),
    "animation": ("png", animated("PNG"), 64, 48),
    "animated_webp": ("webp", animated("WEBP"), 64, 48),
    "dot": ("png", encoded(smooth(1, 1), "PNG"), 1, 1),
    "line": ("png", encoded(smooth(20000, 1), "PNG"), 20000, 1),
}
# key: (suffix, content, reason)
IMAGES = {
    "cut_jpeg": ("jpg", encoded(PIXELS, "JPEG", quality=90)[:1500], "image cannot be decoded"),
    "cut_png": ("png", encoded(PIXELS, "PNG")[:3000], "image cannot be decoded"),
    "cut_webp": ("webp", encoded(PIXELS, "WEBP")[:600], "image cannot be decoded"),
    "cut_header": ("jpg", JPEG[:10], "damaged image header"),
    "zero_bytes": ("jpg", b"", "empty image"),
    "html": ("jpg", b"<!DOCTYPE html><p>404", "text instead of an image"),
    "noise": ("jpg", bytes(range(1, 200)), "not an image"),
    "gif": ("jpg", encoded(PIXELS, "GIF"), "image format is not read"),
    "tiff": ("png", encoded(PIXELS, "TIFF"), "image format is not read"),
    "bomb": ("png", png_of(30000, 30000, idat=bytes(10**6)), "too many pixels"),
    "webp_bomb": ("webp", b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2, "too many pixels"),
    "no_area": ("png", png_of(0, 10), "damaged image header"),
    "text_bomb": ("png", PNG[:33] + png_of(64, 48, idat=bytes(9))[33:], "image cannot be decoded"),
}
# key: ({suffix: content}, reason)
PAIRS = {
    "no_text": ({"jpg": JPEG}, "no caption"),
    "no_picture": ({"txt": b"alone"}, "no image"),
    "latin1": ({"jpg": JPEG, "txt": b"caf\xe9"}, "caption is not UTF-8"),
    "nul": ({"jpg": JPEG, "txt": b"a\0b"}, "caption has a NUL"),
    "huge_text": ({"jpg": JPEG, "txt": b"word " * 200_000}, "caption is too long"),
    "empty_text": ({"jpg": JPEG, "txt": b" \n"}, "empty caption"),
    "bad_json": ({"jpg": JPEG, "txt": b"x", "json": b"{"}, "json cannot be read"),
    "deep_json": ({"jpg": JPEG, "txt": b"x", "json": b"[" * 100_000}, "json cannot be read"),
    "surrogate": ({"jpg": JPEG, "txt": b"x", "json": b'{"a": "\\ud800"}'}, "json cannot be read"),
    "infinite": ({"jpg": JPEG, "txt": b"x", "json": b'{"a": 1e999}'}, "json cannot be read"),
    "list_json": ({"jpg": JPEG, "txt": b"x", "json": b"[1]"}, "json holds no fields"),
    "huge_json": ({"jpg": JPEG, "txt": b"x", "json": b'"' + b"a" * 2**20 + b'"'}, "json is too large"),
    "pickled": ({"jpg": JPEG, "txt": b"x", "pkl": b"cos\nsystem\n(S'exit 1'\ntR."}, "pickle"),
    "torch": ({"jpg": JPEG, "txt": b"x", "pyd": b"cos\nsystem\n(S'exit 1'\ntR."}, "pickle"),
    "two_images": ({"jpg": JPEG, "png": PNG, "txt": b"x"}, "duplicate member"),
    "two_pickles": ({"pickle": b".", "jpg": JPEG, "txt": b"x"}, "pickle"),
}
# key: (attributes of the member, reason)
MEMBERS = {
    "../outside": ({}, "unsafe name"),
    "a/../../outside": ({}, "unsafe name"),
    "/etc/absolute": ({}, "unsafe name"),
    "symbolic": ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "link"),
    "hard": ({"type": tarfile.LNKTYPE, "linkname": "plain.jpg"}, "link"),
    "pipe": ({"type": tarfile.FIFOTYPE}, "special member"),
    "device": ({"type": tarfile.CHRTYPE, "devmajor": 1}, "special member"),
    "hollow": ({"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.realsize": "9"}}, "sparse member"),
}


def add(tar, name, data=b"", **attributes):
    member = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(member, key, value)
    member.size = len(data) if member.isreg() else 0
    tar.addfile(member, io.BytesIO(data) if member.isreg() else None)


def shard_of(groups, format=tarfile.PAX_FORMAT):
    """Bytes of a tar of {key: {suffix: content}}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for key, parts in groups.items():
            for suffix, data in parts.items():
                add(tar, f"{key}.{suffix}", data)
    return file.getvalue()


def pair(suffix, data):
    return {suffix: data, "txt": b"a caption", "json": json.dumps({"aesthetic": 5.5, "nsfw": False}).encode()}


def write(folder):
    """Writes the shards. Returns {(shard's name, key): reason or None}, one entry an example."""
    expected = {}

    def put(name, data, reasons):
        (folder / name).write_bytes(data)
        expected.update({(name, key): reason for key, reason in reasons.items()})

    put("used.tar", shard_of({key: pair(*row[:2]) for key, row in USED.items()}), dict.fromkeys(USED))
    put(
        "images.tar",
        shard_of({key: pair(*row[:2]) for key, row in IMAGES.items()}),
        {k: r[2] for k, r in IMAGES.items()},
    )
    put("pairs.tar", shard_of({key: row[0] for key, row in PAIRS.items()}), {k: r[1] for k, r in PAIRS.items()})

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "folder", type=tarfile.DIRTYPE)
        for key, (attributes, _) in MEMBERS.items():
            add(tar, f"{key}.jpg", JPEG, **attributes)
            add(tar, f"{key}.txt", b"x")
        for part in ("a", "b", "a"):
            for suffix, data in pair("jpg", JPEG).items():
                add(tar, f"twice_{part}.{suffix}", data)
        add(tar, "again.jpg", JPEG)
        add(tar, "again.jpg", JPEG)
        add(tar, "again.txt", b"x")
        for suffix, data in pair("jpg", JPEG).items():
            add(tar, f"long/{'n' * 200}.{suffix}", data)
        for suffix, data in pair("jpg", JPEG).items():
            add(tar, f"./unicode/caf\u00e9.{suffix}", data, pax_headers={"comment": "hello"})
    reasons = {key: reason for key, (_, reason) in MEMBERS.items()}
    used = dict.fromkeys(["twice_b", "twice_a", f"long/{'n' * 200}", "unicode/caf\u00e9"])
    # The second of two examples of one key is another row.
    put("members.tar", file.getvalue(), reasons | used | {"again": "duplicate member"})
    expected["members.tar", "twice_a", "second"] = "duplicate key"

    whole = shard_of({str(n): pair("jpg", JPEG) for n in range(5)})
    third = whole.index(b"2.jpg\0")
    keys = ["0", "1", "2"]
    put("cut_content.tar", whole[: third + 700], dict(zip(keys, [None, None, "truncated shard"], strict=True)))
    put("cut_header.tar", whole[: third + 100], {"0": None, "1": "truncated shard"})
    put("no_end.tar", whole[: whole.rindex(b"4.json\0") + 1024], dict.fromkeys("0123") | {"4": "truncated shard"})
    spoiled = bytearray(whole)
    spoiled[third + 5] ^= 1
    put("spoiled.tar", bytes(spoiled), {"0": None, "1": "damaged tar header"})
    put("empty.tar", b"", {"": "empty shard"})
    put("no_members.tar", bytes(10240), {"": "empty shard"})
    compressor = zlib.compressobj(wbits=31)
    put("gzip.tar", compressor.compress(whole) + compressor.flush(), {"": "gzip'd shard"})
    put("no_tar.tar", JPEG * 20, {"": "not a tar file"})
    old = shard_of({"old/" + "d" * 120: pair("jpg", JPEG)}, tarfile.GNU_FORMAT)
    put("gnu.tar", old, {"old/" + "d" * 120: None})
    return expected
