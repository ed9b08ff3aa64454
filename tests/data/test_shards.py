"""What hostile shards become: every example used or rejected by its reason, nothing lost, nothing extracted."""

import collections
import io
import os
import subprocess
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jdiff.data import index
from jdiff.data.decode import decode
from jdiff.data.examples import examples
from jdiff.data.headers import RejectError, read_header
from jdiff.data.tar import ShardError, members
from tests.data import hostile


def rows_of(folder):
    return [row for path in index.parts_of(folder) for row in pq.read_table(path).to_pylist()]


pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    shards, out = folder / "shards", folder / "index"
    shards.mkdir()
    expected = hostile.write(shards)
    parts = index.build(sorted(map(str, shards.iterdir())), out, max_reject_rate=1.0)
    return shards, expected, parts, rows_of(out)


def test_every_example_is_used_or_rejected_by_its_reason(indexed):
    _, expected, _, rows = indexed
    found = collections.Counter((os.path.basename(row["shard"]), row["key"], row["reject"]) for row in rows)
    assert found == collections.Counter((*name[:2], reason) for name, reason in expected.items())


def test_sums(indexed):
    _, expected, parts, rows = indexed
    for part in parts:
        assert part.seen == part.used + sum(part.rejected.values())
    assert sum(part.seen for part in parts) == len(rows) == len(expected)
    assert sum(part.used for part in parts) == sum(reason is None for reason in expected.values())


def test_an_offset_and_size_are_those_of_the_content(indexed):
    *_, rows = indexed
    for row in rows:
        if os.path.basename(row["shard"]) == "used.tar":
            _, content, width, height = hostile.USED[row["key"]]
            with open(row["shard"], "rb") as file:
                file.seek(row["offset"])
                assert file.read(row["size"]) == content
            assert (row["width"], row["height"]) == (width, height)
            assert row["caption"] == "a caption" and row["script"] == "latin"


def test_nothing_is_written_beside_the_index(indexed):
    shards, *_ = indexed
    assert sorted(path.name for path in shards.parent.iterdir()) == ["index", "shards"]
    assert all(path.suffix == ".tar" for path in shards.iterdir())


def pixels(key):
    image, size = decode(hostile.USED[key][1], (64, 64))
    assert image.mode == "RGB" and size == hostile.USED[key][2:]
    return np.asarray(image).astype(int)


GREY = np.asarray(Image.fromarray(hostile.smooth()).convert("L")).astype(int)[..., None]


@pytest.mark.parametrize(
    ("key", "expected", "error"),
    [
        ("plain", hostile.smooth(), 6),
        ("lossless", hostile.smooth(), 0),
        ("webp", hostile.smooth(), 0),
        ("wrong_suffix", hostile.smooth(), 0),
        ("progressive", hostile.smooth(), 6),
        ("cmyk", hostile.smooth(), 6),
        ("bad_exif", hostile.smooth(), 6),
        ("bad_profile", hostile.smooth(), 6),
        ("grey", GREY, 4),
        ("deep_grey", (hostile.GREY16 / 257)[..., None], 1),
        ("palette", hostile.smooth() // 51 * 51, 0),
        ("turned", np.rot90(hostile.smooth(), -1), 6),
        ("turned_png", np.rot90(hostile.smooth(), -1), 0),
        ("animation", np.full((48, 64, 3), 200), 0),
        ("animated_webp", np.full((48, 64, 3), 200), 0),
        ("dot", hostile.smooth(1, 1), 0),
        ("line", hostile.smooth(20000, 1), 0),
    ],
)
def test_pixels_are_right(key, expected, error):
    assert np.abs(pixels(key) - expected).max() <= error


def test_transparent_parts_become_white():
    shown = pixels("alpha")
    assert (shown[:, :32] == (255, 0, 0)).all() and (shown[:, 32:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(orientation):
    from PIL import ImageOps

    data = hostile.encoded(hostile.smooth(), "JPEG", quality=95, exif=hostile.exif(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image, size = decode(data, (64, 64))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert size == expected.size == read_header(io.BytesIO(data))[1:3]


def test_a_large_jpeg_is_decoded_small_and_never_below_what_is_asked():
    data = hostile.encoded(hostile.smooth(1000, 800), "JPEG", exif=hostile.exif(6))
    image, whole = decode(data, (200, 100))
    assert whole == (800, 1000) and 200 <= image.width < 800 and 100 <= image.height < 1000


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (640, 3)])
def test_headers_agree_with_pillow(form, size):
    header = read_header(io.BytesIO(hostile.encoded(hostile.smooth(*size), form)))
    assert header == (form, *size, 1)


def test_a_jpeg_header_behind_large_segments_is_found():
    data = hostile.encoded(hostile.smooth(), "JPEG", icc_profile=bytes(200_000))
    assert data.index(b"\xff\xc0") > 200_000
    assert read_header(io.BytesIO(data))[1:3] == (64, 48)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_every_cut_of_a_header_is_rejected_and_not_a_crash(form):
    data = hostile.encoded(hostile.smooth(), form)
    for cut in range(len(data)):
        try:
            header = read_header(io.BytesIO(data[:cut]))
            assert header[1:3] == (64, 48)
        except RejectError:
            pass


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_agree_with_tarfile(format, tmp_path):
    names = ["a.jpg", "b/" + "c" * 90 + ".txt", "d/" * 60 + "e.json"]
    names += [] if format == tarfile.USTAR_FORMAT else ["f" * 300 + ".txt", "g/caf\u00e9.jpg"]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=format) as tar:
        for size, name in enumerate(names):
            hostile.add(tar, name, bytes([65 + size]) * size * 700)
    data = path.read_bytes()
    found = [(m.name, m.offset, m.size, m.fault) for m in members(lambda at, n: data[at : at + n], len(data))]
    with tarfile.open(path) as tar:
        assert found == [(m.name, m.offset_data, m.size, None) for m in tar]


def test_sparse_files_of_gnu_tar_are_passed_over(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        for hole in range(1, 12):
            file.seek(hole * 2**20)
            file.write(b"x" * 4096)
    (tmp_path / "b.jpg").write_bytes(b"content")
    for form in ("gnu", "posix"):
        made = subprocess.run(
            ["tar", "--sparse", f"--format={form}", "-cf", "s.tar", "a.jpg", "b.jpg"], cwd=tmp_path, capture_output=True
        )
        assert made.returncode == 0, made.stderr
        data = (tmp_path / "s.tar").read_bytes()
        assert len(data) < 2**20, "this file system keeps no holes"
        sparse, plain = members(lambda at, n, data=data: data[at : at + n], len(data))
        assert sparse.fault == "sparse member"
        assert (plain.name, plain.fault) == ("b.jpg", None)
        assert data[plain.offset : plain.offset + plain.size] == b"content"


@pytest.mark.parametrize("field", ["size", "checksum", "pax", "huge pax", "negative"])
def test_wrong_numbers_end_a_shard_by_name(field):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        hostile.add(tar, "a.jpg", b"x", pax_headers={"path": "n" * 200} if "pax" in field else {})
    data = bytearray(file.getvalue())
    if field == "size":
        data[124:136] = b"zzzzzzzzzzz\0"
    elif field == "negative":
        data[124:136] = b"\xff" * 12
    elif field == "pax":
        data[512:515] = b"999"
    elif field == "huge pax":
        data[124:136] = b"77777777777\0"
    data[148:156] = b"        "
    total = sum(data[:512]) + (field == "checksum")
    data[148:156] = b"%06o\0 " % total
    with pytest.raises(ShardError, match=r"damaged tar header|truncated shard|not a tar file"):
        list(members(lambda at, n: bytes(data[at : at + n]), len(data)))


def faults_of(data):
    """Counts of the reasons of a shard's examples; None for those that are used."""
    return collections.Counter(example.fault for example in examples(lambda at, n: data[at : at + n], len(data)))


def whole_shard(name="k", examples=40):
    return hostile.shard_of({f"{name}{n:03}": hostile.pair("jpg", hostile.JPEG) for n in range(examples)})


def test_the_second_half_of_a_shard_that_is_zeros_is_named():
    whole = whole_shard()
    for part in (0.1, 0.5, 0.8):
        kept = int(len(whole) * part)
        faults = faults_of(whole[:kept] + bytes(len(whole) - kept))
        assert faults["zeros in place of members"] == 1 and faults[None] == pytest.approx(40 * part, abs=2)
    assert faults_of(bytes(100_000)) == {"zeros in place of members": 1}


def test_shards_that_were_put_together_are_read_to_the_end():
    one, other = whole_shard("a"), whole_shard("b")
    assert faults_of(one + other) == {None: 80}
    assert faults_of(one + one) == {None: 40, "duplicate key": 40}
    # A hole in the middle: what follows begins within a member.
    assert faults_of(one[:60_000] + bytes(60_000) + one[120_000:])["data after the end of the tar file"] == 1


def test_a_hole_between_members_is_named_and_the_rest_used():
    whole = whole_shard()
    first, second = (whole.index(f"k{n:03}.jpg\0".encode()) for n in (10, 30))
    assert faults_of(whole[:first] + bytes(second - first) + whole[second:]) == {
        None: 20,
        "zeros in place of members": 1,
    }


@pytest.mark.parametrize("rest", [b"x" * 100, b"x" * 2048, b"\x1f\x8b" + b"z" * 700, bytes(511) + b"x"])
def test_what_follows_the_end_of_a_shard_is_named(rest):
    assert faults_of(whole_shard() + rest) == {None: 40, "data after the end of the tar file": 1}


@pytest.mark.parametrize("blocks", [1, 2, 20, 40, 128, 2048])
def test_padding_of_any_writer_is_no_loss(tmp_path, blocks):
    for n in range(5):
        (tmp_path / f"{n}.jpg").write_bytes(hostile.JPEG)
        (tmp_path / f"{n}.txt").write_text("a caption")
    names = [f"{n}.{kind}" for n in range(5) for kind in ("jpg", "txt")]
    subprocess.run(["tar", "-b", str(blocks), "-cf", "s.tar", *names], cwd=tmp_path, check=True)
    assert faults_of((tmp_path / "s.tar").read_bytes()) == {None: 5}


def test_an_end_of_one_block_or_none_beyond_two_is_an_end():
    data = whole_shard().rstrip(b"\0")
    data += bytes(-len(data) % 512)
    for blocks in (1, 2, 3):
        assert faults_of(data + bytes(512 * blocks)) == {None: 40}
