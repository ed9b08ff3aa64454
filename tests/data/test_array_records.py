"""ArrayRecord files as shards: records that protobuf itself wrote, damaged ones, and training from them."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from jdiff.data import index
from jdiff.data.array_records import SPAN, RecordReader, decoded_sizes
from jdiff.data.buckets import Buckets
from jdiff.data.decode import decode
from jdiff.data.filter import Recipe, make_view
from jdiff.data.reader import Reader
from jdiff.data.scorers import Sharpness
from jdiff.data.scores import score
from jdiff.data.view import View
from jdiff.data.view_stream import ViewStream
from tests.data import hostile


def _message(file, name, *fields):
    message = file.message_type.add(name=name)
    for field, number, kind, label, type_name in fields:
        message.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)
    return message


def example_class():
    """`tf.train.Example`, as its .proto file has it, by protobuf: an independent writer."""
    file = descriptor_pb2.FileDescriptorProto(name="test_example.proto", package="t", syntax="proto3")
    one, many, kinds = 1, 3, descriptor_pb2.FieldDescriptorProto
    for name, kind in (("Bytes", kinds.TYPE_BYTES), ("Float", kinds.TYPE_FLOAT), ("Int64", kinds.TYPE_INT64)):
        _message(file, f"{name}List", ("value", 1, kind, many, None))
    feature = [
        (f"{name.lower()}_list", number, kinds.TYPE_MESSAGE, one, f".t.{name}List")
        for number, name in enumerate(("Bytes", "Float", "Int64"), 1)
    ]
    _message(file, "Feature", *feature)
    features = _message(file, "Features", ("feature", 1, kinds.TYPE_MESSAGE, many, ".t.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=one)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, label=one, type_name=".t.Feature")
    _message(file, "Example", ("features", 1, kinds.TYPE_MESSAGE, one, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


Example = example_class()


def serialized(**features):
    message = Example()
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        values = [value.encode() if isinstance(value, str) else value for value in values]
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0])]
        getattr(message.features.feature[name], kind).value.extend(values)
    return message.SerializeToString(deterministic=True)


def write(path, records, options="group_size:1"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return str(path)


def indexed(folder, records, **options):
    shard = write(folder / "a.array_record", records)
    (part,) = index.build([shard], folder / "index", max_reject_rate=1, **options)
    return part, pq.read_table(folder / "index" / index.part_name(shard)).to_pylist()


GOOD = {
    "a": {"jpg": hostile.JPEG, "txt": "a caption", "score": 5.5, "n": -3, "wide": 2**40, "scores": [1.5, -2.0]},
    "b": {"png": hostile.PNG, "caption": "told in a field", "url": "https://a.org/b.png", "raw": b"\xff\xfe"},
    "c": {"image": hostile.JPEG, "txt": "of tfds", "json": '{"score": 6, "deep": {"x": [1]}}', "nan": float("nan")},
}


def test_records_are_rows_like_members_of_a_tar(tmp_path):
    part, rows = indexed(tmp_path, [serialized(key=key, **fields) for key, fields in GOOD.items()])
    assert (part.seen, part.used, part.rejected) == (3, 3, {})
    assert [row["key"] for row in rows] == ["a", "b", "c"]
    assert [row["caption"] for row in rows] == ["a caption", "told in a field", "of tfds"]
    assert [json.loads(row["json"]) for row in rows] == [
        {"score": 5.5, "n": -3, "wide": 2**40, "scores": [1.5, -2.0]},
        {"caption": "told in a field", "url": "https://a.org/b.png"},
        {"score": 6, "deep": {"x": [1]}},
    ]
    tar = tmp_path / "a.tar"
    groups = {
        key: {"png" if key == "b" else "jpg": fields.get("png") or hostile.JPEG, "txt": b"x"}
        for key, fields in GOOD.items()
    }
    tar.write_bytes(hostile.shard_of(groups))
    index.build([str(tar)], tmp_path / "other")
    others = pq.read_table(tmp_path / "other" / index.part_name(str(tar))).to_pylist()
    for name in ("format", "width", "height", "sha256", "thumbnail", "size"):
        assert [row[name] for row in rows] == [row[name] for row in others]


def test_headers_alone(tmp_path):
    _, rows = indexed(tmp_path, [serialized(**GOOD["a"]), serialized(**GOOD["b"])], depth="headers")
    assert [row["key"] for row in rows] == ["000000000", "000000001"]
    assert [(row["width"], row["height"], row["sha256"]) for row in rows] == [(64, 48, None)] * 2


BAD = [
    (serialized(key="k0", txt="x"), "no image"),
    (serialized(key="k1", jpg=hostile.JPEG), "no caption"),
    (serialized(key="k2", jpg=hostile.JPEG, png=hostile.PNG, txt="x"), "duplicate member"),
    (serialized(key="k3", jpg=[hostile.JPEG, hostile.JPEG], txt="x"), "duplicate member"),
    (serialized(key="k4", jpg=b"", txt="x"), "empty image"),
    (serialized(key="k5", jpg=hostile.JPEG, txt=b"caf\xe9"), "caption is not UTF-8"),
    (serialized(key="k6", jpg=hostile.JPEG, txt="x", json="{"), "json cannot be read"),
    (serialized(key="k7", jpg=hostile.JPEG, txt="x", pkl=b"cos\nsystem\n"), "pickle"),
    (serialized(key="k8", jpg=hostile.JPEG, txt="x", big="y" * 2**20), "json is too large"),
    (serialized(key="a\nb", jpg=hostile.JPEG, txt="x"), "unsafe name"),
    (serialized(key="k8", jpg=hostile.JPEG, txt="x"), "duplicate key"),
    (serialized(key="k9", jpg=hostile.JPEG[:400], txt="x"), "image cannot be decoded"),
    (b"", "no image"),
    (b"\xff" * 20, "record is no tf.train.Example"),
    (b"\x0a\xff\xff\xff\xff\x0f", "record is no tf.train.Example"),
    (hostile.JPEG, "record is no tf.train.Example"),
]


def test_every_record_is_used_or_rejected_by_name(tmp_path):
    part, rows = indexed(tmp_path, [record for record, _ in BAD])
    assert [row["reject"] for row in rows] == [reason for _, reason in BAD]
    assert (part.seen, part.used) == (len(BAD), 0) and sum(part.rejected.values()) == len(BAD)


@pytest.mark.parametrize("tag", [0x09, 0x0D])
def test_numbers_on_a_wire_that_is_not_theirs_are_left_out(tmp_path, tag):
    """A whole number as fixed64 or fixed32: protobuf takes it for a field that it does not know."""
    number = bytes([tag]) + bytes(8 if tag == 0x09 else 4)
    for part in (b"\x1a", b"\x12"):
        number = part + bytes([len(number)]) + number
    entry = b"\x0a\x01m" + number
    for _ in range(2):
        entry = b"\x0a" + bytes([len(entry)]) + entry
    record = serialized(key="a", **GOOD["a"]) + entry
    assert Example.FromString(record).features.feature["m"].int64_list.value == []
    part, rows = indexed(tmp_path, [record])
    assert part.used == 1 and json.loads(rows[0]["json"]).keys() == {"score", "n", "wide", "scores"}


def test_spoiled_bytes_raise_nothing(tmp_path):
    """Cut and changed records: each is a row, whatever is in it."""
    draw, whole = random.Random(0), serialized(key="a", **GOOD["a"])
    records = [whole[: draw.randrange(len(whole))] for _ in range(60)]
    for _ in range(300):
        spoiled = bytearray(whole)
        spoiled[draw.randrange(60)] = draw.randrange(256)
        spoiled[-draw.randrange(1, 120)] = draw.randrange(256)
        records.append(bytes(spoiled))
    part, rows = indexed(tmp_path, records, depth="headers")
    assert part.seen == len(rows) == 360 == part.used + sum(part.rejected.values())


@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "record"])
def test_damaged_files_are_counted(tmp_path, damage):
    path = tmp_path / "a.array_record"
    write(
        path, [serialized(key=str(n), jpg=hostile.JPEG + random.Random(n).randbytes(90_000), txt="x") for n in range(3)]
    )
    data = bytearray(path.read_bytes())
    if damage == "record":
        data[2000] ^= 255
    path.write_bytes({"empty": b"", "noise": random.Random(0).randbytes(10**5), "cut": data[:90_000]}.get(damage, data))
    (part,) = index.build([str(path)], tmp_path / "index", max_reject_rate=1)
    expected = {"record cannot be read": 1} if damage == "record" else {"shard cannot be read": 1}
    assert part.rejected == expected and part.used == (2 if damage == "record" else 0)


def test_files_that_were_put_together_are_named(tmp_path):
    """The package that reads them reads the last, and says nothing of the first."""
    one, other = (write(tmp_path / f"{n}.array_record", [serialized(**GOOD["a"])] * 3) for n in "ab")
    both = tmp_path / "both.array_record"
    both.write_bytes(Path(one).read_bytes() + Path(other).read_bytes())
    (part,) = index.build([str(both)], tmp_path / "index", max_reject_rate=1)
    assert part.rejected["several ArrayRecord files in one, of which the last is read"] == 1
    for rest in (bytes(70_000), b"x" * 100):
        both.write_bytes(Path(one).read_bytes() + rest)
        (part,) = index.build([str(both)], tmp_path / "index", max_reject_rate=1)
        assert part.rejected == {"shard cannot be read": 1}


def test_a_remote_file_is_refused_by_name(tmp_path):
    """tar shards are read by ranges from any store; the package that reads these opens local paths alone."""
    local = write(tmp_path / "a.array_record", [serialized(**GOOD["a"])])
    for shard in ("memory://bucket/a.array_record-00000-of-00001", f"file://{local}"):
        with pytest.raises(ValueError, match=f"shard {shard} is an ArrayRecord file, .* copy it to a disk"):
            index.build([shard], tmp_path / "index")
        with pytest.raises(OSError, match="copy it to a disk"):
            RecordReader(shard)


def test_records_that_take_too_much_memory_are_not_read(tmp_path):
    """A kilobyte that decodes to 257 MB; beside what is read, at every size at which chunks cross a block's border."""
    part, rows = indexed(tmp_path, [serialized(**GOOD["a"]), bytes(SPAN + 2**20)])
    assert part.rejected == {"records take too much memory": 1} and len(rows) == 1
    sizes = [0, 1, 40, 65_000, 65_408, 65_448, 65_488, 65_512, 65_536, 65_600, 131_000, 200_000]
    for options in ("group_size:1", "group_size:1,uncompressed"):
        for some in (sizes, sizes[::-1], sizes[::2] + sizes[1::2]):
            path = write(tmp_path / "b.array_record", [random.Random(n).randbytes(n) for n in some], options)
            with Reader(path) as file:
                assert list(decoded_sizes(file.read, file.length))[1 : 1 + len(some)] == some


def test_a_view_streams_from_records_and_tars_alike(tmp_path):
    pictures = [hostile.encoded(hostile.smooth(40 + n, 40), "PNG") for n in range(10)]
    fields = [{"png": picture, "txt": f"row {n}"} for n, picture in enumerate(pictures)]
    records = write(tmp_path / "a.array_record-00000-of-00001", [serialized(**row) for row in fields])
    (tmp_path / "b.tar").write_bytes(
        hostile.shard_of({f"{n:09}": f | {"txt": f["txt"].encode()} for n, f in enumerate(fields)})
    )
    batches = []
    for name, shard in (("a", records), ("b", str(tmp_path / "b.tar"))):
        index.build([shard], tmp_path / name)
        make_view(tmp_path / name, tmp_path / f"{name}.arrow", Recipe())
        view = View(tmp_path / f"{name}.arrow")
        stream = ViewStream([(view.path, 1)], buckets=Buckets(size=32, step=32), batch_size=10, seed=0, flip=False)
        batches.append([next(read) for read in [stream.batches(3, workers=workers) for workers in (0, 1)]])
    (one, forked), (other, _) = batches
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_array_equal(one[name], forked[name])
    assert sorted(one["caption"]) == [f"row {n}" for n in range(10)] and not any(one["reject"])
    assert decode(pictures[9], (1, 1))[1] == (49, 40)


def test_records_are_scored_like_members_of_a_tar(tmp_path):
    write(tmp_path / "a.array_record", [serialized(**fields) for fields in GOOD.values()])
    index.build([str(tmp_path / "a.array_record")], tmp_path / "index")
    counts = score(tmp_path / "index", Sharpness())
    assert (counts["examples"], counts["cannot_be_decoded"]) == (len(GOOD), 0)
    assert make_view(tmp_path / "index", tmp_path / "v.arrow", Recipe(where="sharpness >= 0"))["rows"] == len(GOOD)
