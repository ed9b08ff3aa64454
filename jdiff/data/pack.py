"""A folder of images as shards in img2dataset's layout: `00000.tar` with `000000000.jpg`, `.txt` and `.json`.

The caption of `cat.jpg` is `cat.txt` beside it, else that of `metadata.csv`, `.jsonl` or `.parquet`, else "caption" or
"text" in `cat.json`, else the name of its subfolder, else its own name. Images go in as they are, byte for byte,
whatever they are: the index judges them. The same folder gives the same bytes, and a shard that is there already is not
written again.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jdiff.data.examples import IMAGES
from jdiff.data.metadata import captions_in


def pack(
    folder: Path, out: Path, *, per_shard: int = 1000, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Path]:
    """Writes the images in `folder` as shards of `per_shard` into `out`. Returns their paths.

    Raises ValueError where there is no image to pack, or where `out` holds shards of another folder or size.
    """
    if per_shard < 1:
        raise ValueError(f"per_shard must be at least 1; got {per_shard}")
    if not folder.is_dir():
        raise ValueError(f"folder {folder} does not exist or is not a folder")
    names = sorted(_images(folder))
    if not names:
        raise ValueError(f"folder {folder} has no images ({', '.join(sorted(IMAGES))})")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder; {out} is a file")
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, names, per_shard)
    captions = captions_in(folder)
    shards = []
    for number, first in enumerate(range(0, len(names), per_shard)):
        shards.append(out / f"{number:05}.tar")
        if not shards[-1].exists():
            unfinished = shards[-1].with_suffix(".tmp")
            with tarfile.open(unfinished, "w") as tar:
                for place, name in enumerate(names[first : first + per_shard], first):
                    _add(tar, f"{place:09}", folder, name, captions)
            os.replace(unfinished, shards[-1])
        progress(min(first + per_shard, len(names)), len(names))
    return shards


def _images(folder: Path | str, inside: str = "") -> Iterator[str]:
    """The images in a folder, by their names relative to it; one entry at a time, since there may be millions."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _images(entry.path, f"{inside}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower().removeprefix(".") in IMAGES and entry.is_file():
                yield inside + entry.name


def _claim(out: Path, names: list[str], per_shard: int) -> None:
    """Shards that were left half done are gone on with only if they are of the same files."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    plan = json.dumps({"per_shard": per_shard, "files": len(names), "sha256": digest.hexdigest()})
    record, unfinished = out / "packed.json", out / "packed.tmp"
    if record.exists():
        if record.read_text() != plan:
            raise ValueError(f"out {out} holds shards of other files or another per_shard; choose an empty folder")
    elif any(path != unfinished for path in out.iterdir()):
        raise ValueError(f"out {out} is not empty and holds no shards of this folder; choose an empty folder")
    unfinished.write_text(plan)
    os.replace(unfinished, record)


def _add(tar: tarfile.TarFile, key: str, folder: Path, name: str, captions: dict[str, str]) -> None:
    path = folder / name
    beside = {kind: path.with_suffix(kind) for kind in (".txt", ".json")}
    record = {"file": name}
    if beside[".json"].is_file():
        try:
            record |= json.loads(beside[".json"].read_bytes())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{beside['.json']} must be a JSON object: {error}") from error
    if beside[".txt"].is_file():
        caption = beside[".txt"].read_bytes()
    else:
        told = captions.get(name) or record.get("caption") or record.get("text")
        place = path.parent.relative_to(folder).name or path.stem
        caption = (told if isinstance(told, str) else place).encode()
    parts = {
        path.suffix.lower().removeprefix("."): path.read_bytes(),
        "txt": caption,
        "json": json.dumps(record, ensure_ascii=False).encode(),
    }
    for kind, data in parts.items():
        member = tarfile.TarInfo(f"{key}.{kind}")
        member.size, member.mode = len(data), 0o644
        tar.addfile(member, io.BytesIO(data))
