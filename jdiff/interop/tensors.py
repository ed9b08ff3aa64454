"""The tensors of a folder by their names: NAME.safetensors, or its shards and NAME.safetensors.index.json.

    with open_tensors(folder) as tensors:
        tensors.entries["conv_in.weight"]    # dtype and shape, from the header alone
        tensors.read("conv_in.weight")       # one array, read now

Files are mapped, not read: host memory holds the tensors that were asked for. All headers are checked before anything
is read. In the index, `weight_map` says which file holds a name; diffusers' own shards are NAME-00001-of-00003.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jdiff.typing import Array

DIFFUSERS = "diffusion_pytorch_model"  # what diffusers calls the weights of a network; transformers says "model"
PICKLED = (".bin", ".ckpt", ".pt", ".pth")


class Entry(NamedTuple):
    """What a header says of a tensor."""

    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """Open tensors by their names."""

    entries: Mapping[str, Entry]
    read: Callable[[str], np.ndarray]
    """One tensor, in its own dtype (bfloat16 is that of ml_dtypes). Raises KeyError for an unknown name."""
    spelled: Callable[[str], str] = str
    """What errors call a tensor, where its name here is not the one that its file has."""


def _tensors(files: Mapping[str, safe_open]) -> Tensors:
    views = {name: file.get_slice(name) for name, file in files.items()}
    entries = {name: Entry(view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}
    return Tensors(entries=entries, read=lambda name: files[name].get_tensor(name))


@contextlib.contextmanager
def open_tensors(folder: Path, name: str = DIFFUSERS) -> Iterator[Tensors]:
    """The tensors `name` of a folder.

    Raises ValueError that names the file, for one that is cut short or no safetensors file at all, an index that is not
    one or that names files or tensors that are not there, tensors that no index names, and a folder that holds pickled
    weights only; FileNotFoundError for a folder with no weights.
    """
    single, index = folder / f"{name}.safetensors", folder / f"{name}.safetensors.index.json"
    with contextlib.ExitStack() as stack:
        if single.exists():
            file = _open(single, stack)
            yield _tensors(dict.fromkeys(_names(file), file))
        elif index.exists():
            yield _tensors(_indexed(index, stack))
        else:
            raise _missing(folder, name)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Tensors]:
    """The tensors of one file.

    Raises ValueError that names it, for one that is cut short or no safetensors file at all, and for pickled weights;
    FileNotFoundError where there is no file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    if path.suffix in PICKLED:
        raise ValueError(f"{path} holds pickled weights, {_conversion(path.name, path.stem)}")
    with contextlib.ExitStack() as stack:
        file = _open(path, stack)
        yield _tensors(dict.fromkeys(_names(file), file))


def _open(path: Path, stack: contextlib.ExitStack) -> safe_open:
    try:
        return stack.enter_context(safe_open(path, framework="np"))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _names(file: safe_open) -> list[str]:
    return file.keys()


def _indexed(index: Path, stack: contextlib.ExitStack) -> dict[str, safe_open]:
    """The file of each name. What the index says and what the files hold must be the same."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        wrong = [place for place in places.values() if Path(place).name != place]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} has no weight_map of tensor names to files") from error
    if wrong:
        raise ValueError(f"{index} names files outside its folder: {sorted(set(wrong))}")
    absent = sorted({place for place in places.values() if not (index.parent / place).exists()})
    if absent:
        raise ValueError(f"{index} names files that are not there: {', '.join(absent)}")
    files = {place: _open(index.parent / place, stack) for place in sorted(set(places.values()))}
    held = {name: place for place, file in files.items() for name in _names(file)}
    if held != places:
        missing = sorted(name for name, place in places.items() if held.get(name) != place)
        unknown = sorted(name for name, place in held.items() if places.get(name) != place)
        raise ValueError(f"{index} and its files differ: not in them {missing}, not in the index {unknown}")
    return {name: files[place] for name, place in places.items()}


def _missing(folder: Path, name: str) -> Exception:
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLED) if folder.is_dir() else []
    if not pickled:
        return FileNotFoundError(f"{folder} holds no {name}.safetensors and no {name}.safetensors.index.json")
    return ValueError(f"{folder} holds pickled weights only ({', '.join(pickled)}), {_conversion(pickled[0], name)}")


def _conversion(pickled: str, name: str) -> str:
    """What to do with a pickled file. Those of trainers hold their tensors one level down."""
    code = (
        f"import torch, safetensors.torch as s; t = torch.load('{pickled}', map_location='cpu', weights_only=True); "
        f"t = t.get('state_dict', t); s.save_file({{k: v.contiguous() for k, v in t.items()}}, '{name}.safetensors')"
    )
    return f'which can run any code when they are read. Where you trust them: python -c "{code}"'


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
    # A folder that is left halfway is still what it was, or already what it will be: a single file is read before an
    # index is, and what is no longer needed goes last.
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
    for old in [folder / f"{name}.safetensors", *folder.glob(f"{name}-*-of-*.safetensors"), index]:
        if old.name not in current:
            old.unlink(missing_ok=True)
