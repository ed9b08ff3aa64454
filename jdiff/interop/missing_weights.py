"""What to say of a folder that lacks the weights that it was asked for: what it holds instead, and what to do then."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

PICKLED = (".bin", ".ckpt", ".pt", ".pth")
OTHERS = {".msgpack": "Flax's", ".onnx": "ONNX's", ".gguf": "GGUF's", ".h5": "TensorFlow's", ".npz": "NumPy's"}


def missing(folder: Path, name: str, variant: str | None) -> Exception:
    """The error for a folder without weights of this name and variant."""
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    wanted = f"{name}.{variant}.safetensors" if variant else f"{name}.safetensors"
    what = f"{folder} holds no {wanted} and no index of its shards"
    others = [other for other in variants(files, name) if other != variant]
    if others:
        ask = " or ".join(f"variant={other!r}" for other in others)
        return FileNotFoundError(f"{what}; it holds others, which {ask} reads")
    pickled = [file for file in files if Path(file).suffix in PICKLED and not file.startswith("training_args")]
    if pickled:
        command = conversion([folder / file for file in _one_of(pickled)], folder / wanted)
        return ValueError(f"{folder} holds pickled weights only ({', '.join(pickled)}), {command}")
    foreign = [f"{file} ({OTHERS[Path(file).suffix]})" for file in files if Path(file).suffix in OTHERS]
    foreign += [file for file in files if file.endswith(".safetensors")]
    return FileNotFoundError(what + (f"; it holds {', '.join(foreign)}" if foreign else ""))


def variants(files: Sequence[str], name: str) -> list[str | None]:
    """The variants of `name` that there are among the names of a folder's files; None for the plain one."""
    one = re.compile(rf"{re.escape(name)}(?:\.([\w-]+))?(?:-\d+-of-\d+)?\.safetensors")
    found = {match[1] for match in map(one.fullmatch, files) if match}
    return sorted(found, key=lambda variant: (variant is not None, variant))


def conversion(pickled: Sequence[Path], target: Path) -> str:
    """How to make safetensors of pickled files.

    Trainers hold tensors one level down, beside other things and with a prefix; tied tensors share memory, which
    safetensors does not."""
    code = (
        "import torch, safetensors.torch as s; t = {}; "
        "load = lambda f: torch.load(f, map_location='cpu', weights_only=True); "
        "inner = lambda d: next((d[k] for k in ('state_dict', 'module', 'model') if isinstance(d.get(k), dict)), d); "
        f"[t.update(inner(load(f))) for f in {[str(path) for path in pickled]!r}]; "
        "s.save_file({k.removeprefix('module.'): v.detach().clone().contiguous() for k, v in t.items() "
        f"if isinstance(v, torch.Tensor)}}, {str(target)!r})"
    )
    return f"which can run any code when they are read. Where you trust them: python -c {shlex.quote(code)}"


def _one_of(pickled: Sequence[str]) -> list[str]:
    """The files that are the weights once: all shards of the first, or the first alone."""
    shard = re.compile(r"(.*)-\d+-of-\d+\.\w+")
    first = shard.fullmatch(pickled[0])
    if first is None:
        return [pickled[0]]
    return [file for file in pickled if (match := shard.fullmatch(file)) and match[1] == first[1]]
