"""A coverage-guided fuzzer over what reads strangers' bytes: tar files and ArrayRecords, image headers, captions.

    python -m tests.data.fuzz [CORPUS] -max_total_time=1200

It needs the package atheris, which no other test does, and loads these modules without the rest of `jdiff.data`. A
crash, a hang of ten seconds, or a sum that is wrong ends it and leaves the input in a file. ArrayRecord files are read
by a package that is not instrumented and that checksums keep strangers' bytes from: records are fuzzed as they come out
of it, and whole files by changing one that it wrote.
"""

import importlib
import io
import sys
import tempfile
import types
from pathlib import Path

import atheris
from array_record.python.array_record_module import ArrayRecordWriter

ROOT = Path(__file__).parents[2]


def load():
    """The modules, instrumented, and nothing that their packages import besides."""
    for name in ("jdiff", "jdiff.data"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT / name.replace(".", "/"))]
        sys.modules[name] = package
    with atheris.instrument_imports(include=["jdiff"]):
        names = ("tar", "examples", "headers", "captions", "array_records")
        return [importlib.import_module(f"jdiff.data.{name}") for name in names]


tar, examples, headers, captions, array_records = load()
FILE = Path(tempfile.mkdtemp()) / "a.array_record"


def read_shard(data):
    """Every example is yielded once, with its reason or all that it needs, and lies inside the shard."""
    reads = 0

    def read(offset, length):
        nonlocal reads
        reads += 1
        assert offset >= 0 and 0 <= length <= 2**20 + 512
        return data[offset : offset + length]

    found = list(examples.examples(read, len(data)))
    assert found and reads <= len(data) // 256 + 4
    assert sum(example.fault is None for example in found) + sum(example.fault is not None for example in found) == len(
        found
    )
    keys = [example.key for example in found if example.fault is None]
    assert len(set(keys)) == len(keys)
    for example in found:
        if example.fault is None:
            assert all(part.offset + part.size <= len(data) for part in example.parts.values())
            assert ".." not in example.key.split("/") and not example.key.startswith("/")


class Records:
    """Records as a file holds them."""

    def __init__(self, records):
        self.records, self.count = records, len(records)

    def is_bomb(self):
        return False

    def is_several(self):
        return False

    def record(self, number):
        return self.records[number]


def read_records(records):
    """Every record is one example, and what is used of it lies inside it."""
    found = list(array_records.record_examples(Records(records)))
    assert len(found) == max(len(records), 1)
    keys = [example.key for example in found if example.fault is None]
    assert len(set(keys)) == len(keys) and all(key.isprintable() for key in keys)
    for number, example in enumerate(found):
        if example.fault is None:
            assert "image" in example.parts
            for part in example.parts.values():
                start = part.offset - number * array_records.SPAN
                assert 0 <= start <= start + part.size <= len(records[number])


def written():
    """An ArrayRecord file of three records in two chunks."""
    writer = ArrayRecordWriter(str(FILE), "group_size:2,uncompressed")
    for record in (b"\x0a\x0c\x0a\x0a\x0a\x03key\x12\x03\x0a\x01a", bytes(300), b"\xff" * 70_000):
        writer.write(record)
    writer.close()
    return FILE.read_bytes()


WRITTEN = written()


def read_file(data):
    """A file that was changed, at places and to bytes that `data` says, or cut: refused, or read to the end."""
    changed = bytearray(WRITTEN)
    for place in range(0, len(data) - 3, 4):
        at = int.from_bytes(data[place : place + 3])
        # Half of the places lie among the headers of the first or the last block.
        at = at // 2 % len(changed) if at % 2 else (at // 2 % 256 - 64) % len(changed)
        changed[at] = data[place + 3]
    FILE.write_bytes(changed[: len(changed) - (data[0] << 9 if len(data) % 8 == 1 else 0)])
    sizes = list(array_records.decoded_sizes(lambda at, length: bytes(changed[at : at + length]), len(changed)))
    assert len(sizes) <= len(changed) // 24
    try:
        with array_records.RecordReader(str(FILE)) as reader:
            found = len(list(array_records.record_examples(reader)))
            assert found == max(reader.count, 1) + reader.is_several() or reader.is_bomb()
    except OSError:
        pass


def repaired_checksums(data):
    """With each block's checksum made right, so that what lies behind it is reached."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - 511, 512):
        blocks[start + 148 : start + 156] = b" " * 8
        blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + 512])
    return bytes(blocks)


def one(data):
    kind, data = data[:1], data[1:]
    if kind < b"\x20":
        read_records(data.split(b"\n\n"))
    elif kind < b"\x28":
        read_file(data)
    elif kind < b"\x50":
        read_shard(data)
    elif kind < b"\x80":
        read_shard(repaired_checksums(data))
    elif kind < b"\xb0":
        try:
            header = headers.read_header(io.BytesIO(data))
            assert 0 < header.width * header.height <= headers.MAX_PIXELS and 1 <= header.orientation <= 8
        except headers.RejectError:
            pass
    elif kind < b"\xd0":
        record, fault = examples.record_of(data)
        caption, why = examples.caption_of(None if data[:1] == b"{" else data, record)
        assert (fault is None or not record) and (why is None) == bool(caption)
    else:
        caption, why = examples.caption_of(data, {})
        if why is None:
            for rule in captions.REPAIRS:
                assert isinstance(captions.repair(caption, [rule]), str)
            captions.repair(caption, list(captions.REPAIRS))
            captions.script_of(caption)


if __name__ == "__main__":
    atheris.Setup([*sys.argv, "-timeout=10", "-max_len=20000"], one)
    atheris.Fuzz()
