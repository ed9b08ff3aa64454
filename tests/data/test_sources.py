"""Arrays, folders and tfds as sources; how a class is named on the command line; what is refused."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jdiff.data import ArraySource, Data, FolderSource, find_class, open_source
from jdiff.data.drawings import lowest_tenth
from jdiff.data.images import MAX_PIXELS, scaled, to_square

NAMES = ("woman", "woman, dark skin tone", "man", "cat", "Black Cat")


@pytest.mark.parametrize(
    ("query", "label"),
    [("woman", 0), ("WOMAN, dark skin tone", 1), (" man ", 2), ("cat", 3), ("black", 4), ("dark", 1), ("ma", 2)],
)
def test_find_class(query, label):
    assert find_class(NAMES, query) == label


@pytest.mark.parametrize(
    ("query", "said"), [("dog", "is none of"), ("w", "fits 2 of"), ("", "is none of"), ("an", "fits 3 of")]
)
def test_find_class_lists_what_there_is(query, said):
    with pytest.raises(ValueError, match=said) as error:
        find_class(NAMES, query)
    assert all(name in str(error.value) for name in NAMES)


def test_find_class_without_classes():
    with pytest.raises(ValueError, match="has no classes"):
        find_class((), "cat")


def test_array_source():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    source = ArraySource(images, [1, 0], ("a", "b"))
    assert len(source) == 2 and source[0]["label"] == 1 and source[0]["caption"] == "b"
    np.testing.assert_array_equal(source[1]["image"], images[1])
    relabelled, reordered = ArraySource(images, [0, 1], ("a", "b")), ArraySource(images[::-1], [1, 0], ("a", "b"))
    others = [relabelled, reordered, ArraySource(images)]
    assert len({s.fingerprint for s in [source, *others]}) == 4
    assert ArraySource(images.copy(), [1, 0], ("a", "b")).fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((np.zeros((2, 4, 4, 3), np.float32),), "uint8"),
        ((np.zeros((0, 4, 4, 3), np.uint8),), "N > 0"),
        ((np.zeros((2, 4, 4, 1), np.uint8),), "height, width, 3"),
        ((np.zeros((2, 4, 4, 3), np.uint8), [0], ("a",)), "one per image"),
        ((np.zeros((2, 4, 4, 3), np.uint8), [0, 1]), "none without"),
        ((np.zeros((2, 4, 4, 3), np.uint8), [0, 2], ("a", "b")), r"0\.\.1"),
        ((np.zeros((2, 4, 4, 3), np.uint8), [-1, 0], ("a", "b")), r"-1\.\.0"),
    ],
)
def test_array_source_refuses(arguments, said):
    with pytest.raises(ValueError, match=said):
        ArraySource(*arguments)


def save(path, colour=(10, 200, 30), size=(12, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


@pytest.fixture
def pets(tmp_path):
    """60 images in two classes; the red channel is the number of the image, whose class is its parity."""
    for number in range(60):
        save(tmp_path / ("cat", "dog")[number % 2] / f"{number}.png", (number, 0, 0))
    return tmp_path


def test_subfolders_are_classes(pets):
    (pets / "cat" / "notes.txt").write_text("no image")
    sides = [open_source(Data(folder=str(pets), size=8), split) for split in ("train", "held_out")]
    seen = []
    for source in sides:
        assert source.class_names == ("cat", "dog") and source.skipped == {"not the suffix of an image": 1}
        for row in (source[i] for i in range(len(source))):
            number = int(row["image"][0, 0, 0])
            assert row["image"].shape == (8, 8, 3) and row["image"].dtype == np.uint8
            assert row["label"] == number % 2 and row["caption"] == ("cat", "dog")[number % 2]
            seen.append(number)
    assert sorted(seen) == list(range(60))
    assert 1 <= len(sides[1]) <= 15


def test_the_split_of_a_folder_depends_on_names_alone(pets, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in pets.rglob("*.png"):
        save(elsewhere / path.relative_to(pets), (99, 99, 99))
    here, there = (FolderSource(root, split="held_out", size=8) for root in (pets, elsewhere))
    assert here._names == there._names
    # A further file moves none of the others.
    save(pets / "cat" / "new.png")
    assert set(here._names) <= set(FolderSource(pets, split="held_out", size=8)._names)


def test_a_flat_folder_has_no_classes(tmp_path):
    for number in range(20):
        save(tmp_path / f"{number}.JPG")
    source = FolderSource(tmp_path, split="train", size=8)
    assert source.class_names == () and source[0]["label"] == 0 and source[0]["caption"] == ""


def test_fingerprint_of_a_folder(pets):
    def fingerprint(**change):
        return FolderSource(pets, **{"split": "train", "size": 8, **change}).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    assert fingerprint(size=9) != before and fingerprint(split="held_out") != before
    name = FolderSource(pets, split="train", size=8)._names[0]
    save(pets / name, (1, 2, 3))
    assert fingerprint() != before


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("jpg", {"quality": 95}), ("webp", {"lossless": True}), ("bmp", {}), ("gif", {})],
)
def test_formats(tmp_path, suffix, options):
    for number in range(12):
        save(tmp_path / f"{number}.{suffix}", (10, 200, 30), (20, 14), **options)
    image = FolderSource(tmp_path, split="train", size=4)[0]["image"]
    np.testing.assert_allclose(image, np.broadcast_to([10, 200, 30], (4, 4, 3)), atol=4)


def test_the_centre_square_is_kept_and_transparency_is_white():
    wide = np.zeros((4, 12, 4), np.uint8)
    wide[:, 4:8] = (0, 255, 0, 255)
    wide[:, 4:6, 3] = 0
    square = to_square(Image.fromarray(wide), 4)
    assert (square[:, 0] == 255).all() and (square[:, 3] == (0, 255, 0)).all()


def test_shrinking_averages_instead_of_picking_pixels():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    grey = to_square(Image.fromarray(checks.astype(np.uint8)), 8)
    assert abs(grey.astype(int) - 127).max() <= 3


@pytest.mark.parametrize("width,height", [(5, 7), (30, 64), (63, 65), (64, 64), (100, 81), (128, 50)])
def test_scaling_is_bicubic_as_pillow_does_it_in_floating_point(width, height):
    corners = np.random.default_rng(width).integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    ours = scaled(image, (64, 48))
    planes = [Image.fromarray(np.asarray(plane, np.float32)) for plane in image.split()]
    exact = np.stack([np.asarray(plane.resize((64, 48), Image.Resampling.BICUBIC)) for plane in planes], -1)
    assert ours.dtype == np.uint8 and ours.shape == exact.shape
    # Beyond the edge pixels repeat, where Pillow leaves them out.
    x, y = math.ceil(2 * max(64 / width, 1)), math.ceil(2 * max(48 / height, 1))
    np.testing.assert_allclose(ours[y:-y, x:-x], exact[y:-y, x:-x].clip(0, 255), atol=1.25)
    np.testing.assert_allclose(ours, exact.clip(0, 255), atol=4)


def test_camera_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by half a turn
    for number in range(12):
        image.save(tmp_path / f"{number}.png", exif=exif)
    read = FolderSource(tmp_path, split="train", size=16)[0]["image"]
    assert read[0].max() == 0 and read[-1].min() == 255


def claiming(width, height):
    """A PNG of a few bytes, valid up to its first pixel, whose header claims this size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def deep_png():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def tiff():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot identify"),
        (b"not an image", "cannot identify"),
        (claiming(MAX_PIXELS // 1024 + 1, 1024), "at most 67108864"),
        (claiming(2**20, 2**20), "decompression bomb"),
        (deep_png(), "mode I;16"),
        (tiff(), "cannot identify"),
    ],
    ids=["empty", "text", "huge", "bomb", "16-bit", "another format"],
)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_an_image_that_cannot_be_read_is_named_when_opened(pets, content, said, split):
    (pets / "dog" / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        FolderSource(pets, split=split, size=8)
    assert str(pets / "dog" / "bad.png") in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_truncated_image_is_named_when_read(tmp_path, suffix):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for number in range(12):
        noise.save(tmp_path / f"{number}.{suffix}")
    source = FolderSource(tmp_path, split="train", size=8)
    path = tmp_path / source._names[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be read") as error:
        source[0]
    assert str(path) in str(error.value)


def test_folders_that_are_refused(tmp_path):
    def refused(path, said, split="train"):
        with pytest.raises(ValueError, match=said) as error:
            open_source(Data(folder=str(path)), split)
        assert str(path) in str(error.value)

    refused(tmp_path / "missing", "does not exist")
    refused(tmp_path, "has no images")
    (tmp_path / "notes.txt").write_text("no image")
    refused(tmp_path, "among its 1 files")
    name = next(f"{number}.png" for number in range(99) if not lowest_tenth(f"{number}.png"))
    save(tmp_path / name)
    refused(tmp_path, "none of them is in the held_out split", split="held_out")
    refused(tmp_path / name, "not a folder")
    save(tmp_path / "cat" / "two.png")
    refused(tmp_path, "move these into a class")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"folder": "a", "tfds": "cifar10"}, "exclude each other"),
        ({"tfds_dir": "a"}, "needs tfds"),
        ({"size": 0}, "at least 1 pixel; got 0"),
    ],
)
def test_data_refuses(values, said):
    with pytest.raises(ValueError, match=said):
        Data(**values)


def test_open_source_refuses_another_split():
    with pytest.raises(ValueError, match='"train" or "held_out"; got \'test\''):
        open_source(Data(), "test")
