"""A folder of images as shards in img2dataset's layout: `00000.tar` with `000000000.jpg`, `.txt` and `.json`.

The caption of `cat.jpg` is `cat.txt` beside it, else that of `metadata.csv`, `.jsonl` or `.parquet`, else "caption" or
"text" in `cat.json`, else the name of its subfolder, else its own name. Images go in as they are, byte for byte,
whatever they are: the index judges them. The same folder gives the same bytes, and a shard that is there already is not
written again.
"""

import collections
import hashlib
import io
import json
import os
import posixpath
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jdiff.atomic_files import remove_unfinished, replaced, write_atomically
from jdiff.data.examples import IMAGES
from jdiff.data.metadata import captions_in, is_table, table_key
from jdiff.data.walk import files, path_of
from jdiff.locks import NAME as LOCK
from jdiff.locks import locked

_BESIDE = (".txt", ".json")


def pack(
    folder: Path,
    out: Path,
    *,
    per_shard: int = 1000,
    progress: Callable[[int, int], None] = lambda done, total: None,
    left_out: Callable[["collections.Counter[str]"], None] = lambda counts: None,
) -> list[Path]:
    """Writes the images in `folder` as shards of `per_shard` into `out`. Returns their paths. `left_out` is called with
    counts of the files that are not packed, by reason.

    Raises ValueError where there is no image to pack, or where `out` holds shards of another folder or size.
    """
    if per_shard < 1:
        raise ValueError(f"per_shard must be at least 1; got {per_shard}")
    if not folder.is_dir():
        raise ValueError(f"folder {folder} does not exist or is not a folder")
    found, skipped = files(folder)
    names = [name for name in found if posixpath.splitext(name)[1].lower().removeprefix(".") in IMAGES]
    stems = {posixpath.splitext(name)[0] for name in names}
    used = [name for name in found if is_table(name) or (name.endswith(_BESIDE) and name[: name.rfind(".")] in stems)]
    skipped["neither image nor caption"] = len(found) - len(names) - len(used)
    left_out(+skipped)
    if not names:
        raise ValueError(f"folder {folder} has no images ({', '.join(sorted(IMAGES))})")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder; {out} is a file")
    captions = captions_in(folder, found) or {}
    with locked(out, what="packing"):
        remove_unfinished(out)
        _claim(out, names, per_shard)
        return _packed(folder, out, names, captions, per_shard, progress)


def _packed(
    folder: Path,
    out: Path,
    names: list[str],
    captions: dict[str, str],
    per_shard: int,
    progress: Callable[[int, int], None],
) -> list[Path]:
    shards = []
    for number, first in enumerate(range(0, len(names), per_shard)):
        shards.append(out / f"{number:05}.tar")
        if not shards[-1].exists():
            with replaced(shards[-1]) as unfinished, tarfile.open(unfinished, "w") as tar:
                for place, name in enumerate(names[first : first + per_shard], first):
                    _add(tar, f"{place:09}", folder, name, captions)
        progress(min(first + per_shard, len(names)), len(names))
    return shards


def _claim(out: Path, names: list[str], per_shard: int) -> None:
    """Shards that were left half done are gone on with only if they are of the same files."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(path_of(name)) + b"\0")
    plan = json.dumps({"per_shard": per_shard, "files": len(names), "sha256": digest.hexdigest()})
    record = out / "packed.json"
    if record.exists():
        if record.read_text() != plan:
            raise ValueError(f"out {out} holds shards of other files or another per_shard; choose an empty folder")
    elif any(path.name not in (LOCK, f".{record.name}.tmp") for path in out.iterdir()):
        raise ValueError(f"out {out} is not empty and holds no shards of this folder; choose an empty folder")
    write_atomically(record, plan)


def _add(tar: tarfile.TarFile, key: str, folder: Path, name: str, captions: dict[str, str]) -> None:
    stem, suffix = posixpath.splitext(name)
    image, text, fields = (_content(folder, stem + kind) for kind in (suffix, *_BESIDE))
    if image is None:
        raise ValueError(f"image {folder / name} cannot be read: it is gone")
    record: dict[str, Any] = {"file": name}
    try:
        record |= dict(**json.loads(fields)) if fields is not None else {}
        written = json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / (stem + '.json')} must be a JSON object: {error}") from error
    if text is None:
        told = (captions.get(table_key(name)), record.get("caption"), record.get("text"))
        place = posixpath.basename(posixpath.dirname(name)) or posixpath.basename(stem)
        text = next((caption for caption in told if isinstance(caption, str)), place).encode()
    for kind, data in ((suffix.lower().removeprefix("."), image), ("txt", text), ("json", written)):
        member = tarfile.TarInfo(f"{key}.{kind}")
        member.size, member.mode = len(data), 0o644
        tar.addfile(member, io.BytesIO(data))


def _content(folder: Path, name: str) -> bytes | None:
    """Of a regular file; None where there is none."""
    path = os.path.join(folder, path_of(name))
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read()
