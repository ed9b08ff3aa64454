"""`jdiff data pack` and `jdiff data index`: shards of a folder of images, and a table of what shards hold."""

import collections
import dataclasses
import itertools
import os
import sys
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import tyro

from jdiff.cli.arguments import show


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack:
    """Arguments of `jdiff data pack`."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Images, with captions in .txt or .json files beside them, or named by their subfolders."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder of the shards."""
    per_shard: int = 1000
    """Examples in a shard."""
    json: bool = False
    """Print the figures as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """Arguments of `jdiff data index`."""

    shards: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Tar or ArrayRecord files, folders of them, or URLs of tar files. A table that img2dataset left beside a shard is
    read with it."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder of the index; what it holds already is not read again."""
    depth: str = "pixels"
    """Depth of reading: "headers", "bytes" (adds sha256) or "pixels" (adds thumbnail, and rejects what cannot be
    decoded)."""
    workers: int = 2
    """Processes."""
    max_reject_rate: float = 0.2
    """Stop, naming the shard, when more of the examples than this are rejected."""
    failed: bool = False
    """Count what img2dataset could not download as rejected, by reason, where its tables say so."""
    json: bool = False
    """Print the figures as JSON."""


def pack_folder(arguments: Pack) -> None:
    from jdiff.data.pack import pack

    left_out: dict[str, int] = {}
    shards = pack(
        arguments.folder,
        arguments.out,
        per_shard=arguments.per_shard,
        progress=counted("packed"),
        left_out=left_out.update,
    )
    figures = {"out": str(arguments.out), "shards": len(shards), "bytes": sum(path.stat().st_size for path in shards)}
    lines = [f"files left out: {', '.join(f'{reason} {count}' for reason, count in left_out.items())}"] * bool(left_out)
    figures["left_out"] = left_out
    show(arguments, figures, f"{len(shards)} shards in {arguments.out}, {figures['bytes']:,} bytes", *lines)


def index_shards(arguments: Index) -> None:
    from jdiff.data.index import build, told

    shards, left_out = [], collections.Counter()
    for name in arguments.shards:
        some, others = _shards(name)
        shards += some
        left_out += others
    parts = build(
        shards,
        arguments.out,
        depth=arguments.depth,  # pyright: ignore[reportArgumentType]
        workers=arguments.workers,
        max_reject_rate=arguments.max_reject_rate,
        failed=arguments.failed,
        progress=lambda part, done, total: counted("indexed")(done, total),
    )
    reasons: dict[str, int] = {}
    for part in parts:
        for reason, count in part.rejected.items():
            reasons[reason] = reasons.get(reason, 0) + count
    seen, used = sum(part.seen for part in parts), sum(part.used for part in parts)
    figures = {"out": str(arguments.out), "shards": len(parts), "seen": seen, "used": used, "rejected": reasons}
    figures["left_out"] = dict(left_out)
    show(
        arguments,
        figures,
        f"{arguments.out}: {len(parts)} shards, {seen} examples seen = {used} used + {seen - used} rejected",
        *([f"rejected: {told(reasons)}"] if reasons else []),
        *([f"files left out: {told(left_out)}"] if left_out else []),
    )


def _shards(name: str) -> tuple[list[str], "collections.Counter[str]"]:
    """A folder stands for the tar and ArrayRecord files below it; beside them what is left out, by reason."""
    from jdiff.data.array_records import is_records
    from jdiff.data.stores import is_url
    from jdiff.data.walk import files, path_of

    if is_url(name) or not Path(name).is_dir():
        return [name], collections.Counter()
    names, left_out = files(name)
    shards = [file for file in names if file.endswith(".tar") or is_records(file)]
    tables = {file.removesuffix(".tar") + ".parquet" for file in shards}
    others = set(names) - set(shards) - tables - {"packed.json"}
    for kind, those in itertools.groupby(sorted(others, key=_kind), _kind):
        first, *more = those
        left_out[f"{kind} ({first}{', ...' if more else ''})"] = 1 + len(more)
    if not shards:
        told = "".join(f"; left out: {count} {reason}" for reason, count in left_out.items())
        raise ValueError(f"folder {name} has no tar files and no ArrayRecord files{told}")
    return [os.path.join(name, path_of(shard)) for shard in shards], left_out


def _kind(file: str) -> str:
    """The suffix of a file, with that before it where it is of an archive."""
    suffixes = PurePosixPath(file).suffixes
    return "".join(suffixes[-2:] if suffixes[-2:-1] == [".tar"] else suffixes[-1:]) or "without a suffix"


def counted(what: str) -> Any:
    """Progress, on standard error where somebody watches it."""

    def tell(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\r\033[K" if done == total else ""
            print(f"\r\033[K{what} {done} of {total}{end}", end="", file=sys.stderr, flush=True)

    return tell
