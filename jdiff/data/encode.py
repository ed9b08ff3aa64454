"""A view as latents and text embeddings: what encoders give for its images and captions, in shards that go on.

    latents/00000.tar   000000017.npy, float16 [2, h, w, c]: mean and standard deviation of the latents of row 17, as
                        the autoencoder gives them, not scaled yet; 000000017.json: where it is from, and its crop
    texts/00000.tar     HASH.NAME.npy, float16: each array that the text encoders give for the caption of that SHA-256
    latents.arrow, texts.arrow   where in the shards each of them lies; written last

A shard is of one bucket, cropped in the centre and not mirrored, and is written whole or not at all: a command that was
stopped goes on with the next shard. A row that cannot be encoded has a .json with the reason alone, so rows are encoded
and rejected together. Each caption is encoded once, and "" besides, for training without.
"""

import collections
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jdiff.atomic_files import remove_unfinished, replaced, write_atomically
from jdiff.data.buckets import Buckets, Crop, crop
from jdiff.data.headers import RejectError
from jdiff.data.reader import Reader
from jdiff.data.sealed import seal
from jdiff.data.shards import Shards
from jdiff.data.tar import ShardError, members
from jdiff.data.view import View
from jdiff.data.walk import name_of
from jdiff.json_files import read_object
from jdiff.locks import NAME as LOCK

Tell = Callable[[int, int], None]
PLAN = "encoded.json"
_PLACE = {"shard": pa.int32(), "offset": pa.int64(), "size": pa.int64(), "sha256": pa.binary(32)}
LATENTS = pa.schema(
    {"row": pa.int64()}
    | _PLACE
    | {"caption": pa.binary(32), "height": pa.int32(), "width": pa.int32(), "top": pa.int32(), "left": pa.int32()}
    | {"held_out": pa.bool_()}
)
TEXTS = pa.schema({"caption": pa.binary(32), "name": pa.string()} | _PLACE)


def claim(out: Path, plan: dict[str, Any]) -> None:
    """Makes the folder this plan's. Raises ValueError where it holds something else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder; {out} is a file")
    record, text = out / PLAN, json.dumps(plan, indent=2, sort_keys=True) + "\n"
    if record.exists():
        before = read_object(record)
        if before != json.loads(text):
            names = sorted(name for name in before.keys() | plan.keys() if before.get(name) != plan.get(name))
            raise ValueError(f"out {out} was encoded from something else, differing in {', '.join(names)}")
    elif out.exists() and any(path.name not in (LOCK, f".{record.name}.tmp") for path in out.iterdir()):
        raise ValueError(f"out {out} is not empty and holds nothing encoded; choose an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    for folder in (out, out / "latents", out / "texts"):
        remove_unfinished(folder)
    write_atomically(record, text)


def encode_images(
    view: View,
    out: Path,
    encode: Callable[[np.ndarray], tuple[Any, Any]],
    buckets: Buckets,
    *,
    batch_size: int,
    per_shard: int,
    progress: Tell,
) -> dict[str, int]:
    """Writes the latents of a view's images. Returns how many rows were encoded, and rejected by each reason.

    `encode`: images float32 [batch_size, height, width, 3] in [-1, 1] to mean and standard deviation.
    """
    shards = Shards(view.shards)
    number = buckets.assign(view.column("width"), view.column("height"))
    chunks = []
    for bucket, shape in enumerate(buckets.shapes):
        rows = np.flatnonzero(number == bucket)
        chunks += [(shape, rows[first : first + per_shard]) for first in range(0, len(rows), per_shard)]
    folder = out / "latents"
    for place, (shape, rows) in enumerate(chunks):
        path = folder / f"{place:05}.tar"
        if not path.exists():
            batches = (rows[first : first + batch_size] for first in range(0, len(rows), batch_size))
            _write_tar(
                path, (part for batch in batches for part in _latents(view, shards, batch, shape, encode, batch_size))
            )
        progress(place + 1, len(chunks))
    return _finish_latents(folder, len(chunks), out / "latents.arrow")


def _latents(
    view: View, shards: Shards, rows: np.ndarray, shape: tuple[int, int], encode: Any, batch_size: int
) -> Iterable[tuple[str, bytes]]:
    def shown(image: Callable[[], bytes]) -> Crop | str:
        try:
            return crop(image(), shape, (0.5, 0.5), False)
        except RejectError as reason:
            return str(reason)

    begun = [shards.begin(row) for row in view.rows(rows)]
    with ThreadPoolExecutor(2) as threads:
        crops = list(threads.map(shown, begun))
    images = np.zeros((batch_size, shape[1], shape[0], 3), np.float32)
    for place, found in enumerate(crops):
        if isinstance(found, Crop):
            images[place] = found.image.astype(np.float32) / np.float32(127.5) - np.float32(1)
    with np.errstate(over="ignore"):
        moments = np.stack([np.asarray(part) for part in encode(images)], 1).astype(np.float16)
    for row, found, latents in zip(map(int, rows), crops, moments, strict=False):
        described = view.row(row)
        record = {"shard": shards.name(described), "key": described["key"], "caption": mark(described["caption"]).hex()}
        if isinstance(found, Crop) and np.isfinite(latents).all():
            record |= {"original_size": found.original_size, "corner": found.corner, "held_out": described["held_out"]}
            yield f"{row:09}.npy", _npy(latents)
        else:
            record["reject"] = found if isinstance(found, str) else "latents are not finite in float16"
        yield f"{row:09}.json", json.dumps(record).encode()


def encode_captions(
    view: View,
    out: Path,
    encode: Callable[[Sequence[str]], Mapping[str, Any]],
    fits: Callable[[str], bool],
    *,
    batch_size: int,
    per_shard: int,
    progress: Tell,
) -> dict[str, int]:
    """Writes what text encoders give for each caption of a view, once, and for "". Returns how many there are, and how
    many were left out because they do not fit, as those of too many tokens.

    `encode`: `batch_size` captions to arrays [batch_size, ...] by name.
    """
    every = sorted({"", *(view.row(number)["caption"] for number in range(len(view)))})
    chunks = [every[first : first + per_shard] for first in range(0, len(every), per_shard)]
    folder = out / "texts"

    def parts(captions: list[str]) -> Iterable[tuple[str, bytes]]:
        fitting = [caption for caption in captions if fits(caption)]
        for first in range(0, len(fitting), batch_size):
            batch = fitting[first : first + batch_size]
            arrays = encode([*batch, *[""] * (batch_size - len(batch))])
            for place, caption in enumerate(batch):
                for name, array in arrays.items():
                    yield f"{mark(caption).hex()}.{name}.npy", _npy(np.asarray(array[place]).astype(np.float16))

    for place, captions in enumerate(chunks):
        path = folder / f"{place:05}.tar"
        if not path.exists():
            _write_tar(path, parts(captions))
        progress(place + 1, len(chunks))
    found = []
    for place, reader, name, offset, size in _members(folder, len(chunks)):
        caption, kind, _ = name.split(".")
        found.append((bytes.fromhex(caption), kind, place, offset, size, _digest(reader, offset, size)))
    _write_table(out / "texts.arrow", TEXTS, sorted(found))
    encoded = len({row[0] for row in found})
    return {"captions": encoded} | (
        {"rejected: caption does not fit": len(every) - encoded} if encoded < len(every) else {}
    )


def mark(caption: str) -> bytes:
    """What a caption is found by: its SHA-256."""
    return hashlib.sha256(caption.encode()).digest()


def _finish_latents(folder: Path, shards: int, table: Path) -> dict[str, int]:
    counts, found, places = collections.Counter(encoded=0), [], {}
    for place, reader, name, offset, size in _members(folder, shards):
        row, _, kind = name.partition(".")
        if kind == "npy":
            places[row] = (offset, size, _digest(reader, offset, size))
            continue
        record = json.loads(reader.read(offset, size))
        if "reject" in record:
            counts[f"rejected: {record['reject']}"] += 1
            continue
        counts["encoded"] += 1
        where = (*record["original_size"], *record["corner"], record["held_out"])
        found.append((int(row), place, *places.pop(row), bytes.fromhex(record["caption"]), *where))
    _write_table(table, LATENTS, sorted(found))
    return dict(counts)


def _members(folder: Path, shards: int) -> Iterable[tuple[int, Reader, str, int, int]]:
    for place in range(shards):
        path = folder / f"{place:05}.tar"
        with Reader(name_of(path)) as reader:
            try:
                for member in members(reader.read, reader.length):
                    if member.fault:
                        raise ShardError(member.fault)
                    yield place, reader, member.name, member.offset, member.size
            except ShardError as damage:
                raise ValueError(f"{path} is damaged: {damage}; remove it, and the same command goes on") from damage


def _digest(reader: Reader, offset: int, size: int) -> bytes:
    return hashlib.sha256(reader.read(offset, size)).digest()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _write_tar(path: Path, parts: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with replaced(path) as unfinished, tarfile.open(unfinished, "w") as tar:
        for name, data in parts:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))


def _write_table(path: Path, schema: pa.Schema, rows: list[tuple[Any, ...]]) -> None:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)
    with replaced(path) as unfinished:
        with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_table(table)
        seal(unfinished)
