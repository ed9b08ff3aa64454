"""The tensors of a folder by their names: NAME.safetensors, or its shards and NAME.safetensors.index.json.

    with open_tensors(folder) as tensors:
        tensors.entries["conv_in.weight"]    # dtype and shape, from the header alone
        tensors.read("conv_in.weight")       # one array, read now

Files are mapped, not read: host memory holds the tensors that were asked for. All headers are checked before anything
is read. In the index, `weight_map` says which file holds a name; diffusers' own shards are NAME-00001-of-00003.

A folder may hold the same weights several times, as variants, NAME.fp16.safetensors for one. Where it holds a single
file and shards, diffusers reads the shards and transformers the single file, and so does this module.
"""

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jdiff.interop.missing_weights import PICKLED, conversion, missing
from jdiff.json_files import parse_object, read_object
from jdiff.typing import Array

DIFFUSERS = "diffusion_pytorch_model"  # what diffusers calls the weights of a network; transformers says "model"
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
PLAIN = ("BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")
# What a header may name and NumPy lacks: read by hand.
EIGHT_BITS = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
MOST_TENSORS = 10**5  # in a file; the largest known networks have some thousands


class Entry(NamedTuple):
    """What a header says of a tensor."""

    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """Open tensors by their names."""

    entries: Mapping[str, Entry]
    read: Callable[[str], np.ndarray]
    """One tensor, in its own dtype (bfloat16 and float8 are those of ml_dtypes). Raises KeyError for an unknown name,
    ValueError for a dtype that is not read."""
    spelled: Callable[[str], str] = str
    """What errors call a tensor, where its name here is not the one that its file has."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the file says of itself."""


class File(NamedTuple):
    """An open file."""

    path: Path
    opened: safe_open


def _tensors(files: Mapping[str, File]) -> Tensors:
    views = {name: file.opened.get_slice(name) for name, file in files.items()}
    entries = {name: Entry(view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}
    metadata = {}
    for file in {file.path: file for file in files.values()}.values():
        metadata |= file.opened.metadata() or {}

    def read(name: str) -> np.ndarray:
        dtype, shape = entries[name]
        if dtype in EIGHT_BITS:
            return _raw(files[name].path, name).view(EIGHT_BITS[dtype]).reshape(shape)
        if dtype not in (*FLOATS, *PLAIN):
            known = ", ".join((*FLOATS, *PLAIN))
            raise ValueError(f"{files[name].path}: {name} has dtype {dtype}, which is not read; there are {known}")
        return files[name].opened.get_tensor(name)

    return Tensors(entries=entries, read=read, metadata=metadata)


def _raw(path: Path, name: str) -> np.ndarray:
    """The bytes of a tensor, uint8 [n], of a file whose header was found whole."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        begin, end = parse_object(file.read(length), str(path))[name]["data_offsets"]
        file.seek(8 + length + begin)
        return np.frombuffer(file.read(end - begin), np.uint8)


@contextlib.contextmanager
def open_tensors(folder: Path, name: str = DIFFUSERS, variant: str | None = None) -> Iterator[Tensors]:
    """The tensors `name` of a folder, of a variant if one is given.

    Raises ValueError that names the file, for one that is cut short or no safetensors file at all, an index that is not
    one or that names files or tensors that are not there, tensors that no index names, and a folder that holds pickled
    weights only; FileNotFoundError for a folder without these weights, which says what it holds.
    """
    single, indices = places(folder, name, variant)
    index = next((path for path in indices if path.exists()), None)
    with contextlib.ExitStack() as stack:
        if index is not None and (name == DIFFUSERS or not single.exists()):
            yield _tensors(_indexed(index, stack))
        elif single.exists():
            file = _open(single, stack)
            yield _tensors(dict.fromkeys(_names(file), file))
        else:
            raise missing(folder, name, variant)


def places(folder: Path, name: str, variant: str | None) -> tuple[Path, list[Path]]:
    """Where the weights are: as one file, and the names that indices of shards have had."""
    single = f"{name}.{variant}.safetensors" if variant else f"{name}.safetensors"
    indices = [f"{single}.index.json"]
    if variant:
        indices = [f"{name}.safetensors.index.{variant}.json", f"{name}.safetensors.{variant}.index.json", *indices]
    return folder / single, [folder / index for index in indices]


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Tensors]:
    """The tensors of one file.

    Raises ValueError that names it, for one that is cut short or no safetensors file at all, and for pickled weights;
    FileNotFoundError where there is no file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is no file")
    if path.suffix in PICKLED:
        raise ValueError(f"{path} holds pickled weights, {conversion([path], path.with_suffix('.safetensors'))}")
    with contextlib.ExitStack() as stack:
        file = _open(path, stack)
        yield _tensors(dict.fromkeys(_names(file), file))


def _open(path: Path, stack: contextlib.ExitStack) -> File:
    # Neither a pipe, which would be waited for, nor a device, which may have no end.
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        file = File(path, stack.enter_context(safe_open(path, framework="np")))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    count = len(_names(file))
    if count > MOST_TENSORS:
        raise ValueError(f"{path} holds {count} tensors; at most {MOST_TENSORS} are read")
    return file


def _names(file: File) -> list[str]:
    return file.opened.keys()


def _indexed(index: Path, stack: contextlib.ExitStack) -> dict[str, File]:
    """The file of each name. What the index says and what the files hold must be the same."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{index} has no weight_map of tensor names to files")
    wrong = {place for place in places.values() if Path(place).name != place or "\0" in place}
    if wrong:
        raise ValueError(f"{index} names files outside its folder: {sorted(wrong)}")
    absent = sorted({place for place in places.values() if not (index.parent / place).exists()})
    if absent:
        raise ValueError(f"{index} names files that are not there: {', '.join(absent)}")
    files = {place: _open(index.parent / place, stack) for place in sorted(set(places.values()))}
    held = {name: place for place, file in files.items() for name in _names(file)}
    if held != places:
        lacking = sorted(name for name, place in places.items() if held.get(name) != place)
        unknown = sorted(name for name, place in held.items() if places.get(name) != place)
        raise ValueError(f"{index} and its files differ: not in them {lacking}, not in the index {unknown}")
    return {name: files[place] for name, place in places.items()}


def save_tensors(
    folder: Path, tensors: Mapping[str, Array | np.ndarray], name: str = DIFFUSERS, limit: int = 10 * 10**9
) -> None:
    """Writes tensors into a folder: one file, or shards of at most `limit` bytes and an index.

    Host memory holds one file's tensors at a time. Files appear when all of them are written; whatever of `name` was
    in the folder before is replaced. Raises ValueError for a dtype that the format does not have, and writes nothing.
    """
    shards: list[list[str]] = [[]]
    room = limit
    for key, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(key)
        room -= tensor.nbytes
    count = len(shards)
    names = [f"{name}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    names = names if count > 1 else [f"{name}.safetensors"]
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"{file}.{os.getpid()}.part" for file in names]
    try:
        for part, keys in zip(parts, shards, strict=True):
            save_file({key: np.asarray(tensors[key], order="C") for key in keys}, part, {"format": "pt"})
    except BaseException as error:
        for part in parts:
            part.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):
            raise ValueError(f"{folder}: {error}") from error
        raise
    # A folder that is left halfway is still what it was, or already what it will be: what says which weights are read
    # changes at once, and what is no longer needed goes last.
    for part, file in zip(parts, names, strict=True):
        os.replace(part, folder / file)
    index = folder / f"{name}.safetensors.index.json"
    if count > 1:
        places = {key: file for file, keys in zip(names, shards, strict=True) for key in keys}
        total = sum(tensor.nbytes for tensor in tensors.values())
        part = folder / f"{index.name}.{os.getpid()}.part"
        part.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n")
        os.replace(part, index)
    current = {*names, index.name} if count > 1 else set(names)
    # An index is read before a single file, or after it, as the library does: either way it goes before its shards.
    for old in [folder / f"{name}.safetensors", index, *folder.glob(f"{name}-*-of-*.safetensors")]:
        if old.name not in current:
            old.unlink(missing_ok=True)
