"""A coverage-guided fuzzer over what reads strangers' bytes: members, examples, image headers, records and captions.

    python -m tests.data.fuzz [CORPUS] -max_total_time=1200

It needs the package atheris, which no other test does, and loads these modules without the rest of `jdiff.data`. A
crash, a hang of ten seconds, or a sum that is wrong ends it and leaves the input in a file.
"""

import importlib
import io
import sys
import types
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]


def load():
    """The modules, instrumented, and nothing that their packages import besides."""
    for name in ("jdiff", "jdiff.data"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT / name.replace(".", "/"))]
        sys.modules[name] = package
    with atheris.instrument_imports(include=["jdiff"]):
        names = ("tar", "examples", "headers", "captions")
        return [importlib.import_module(f"jdiff.data.{name}") for name in names]


tar, examples, headers, captions = load()


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


def repaired_checksums(data):
    """With each block's checksum made right, so that what lies behind it is reached."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - 511, 512):
        blocks[start + 148 : start + 156] = b" " * 8
        blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + 512])
    return bytes(blocks)


def one(data):
    kind, data = data[:1], data[1:]
    if kind < b"\x40":
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
