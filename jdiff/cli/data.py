"""`jdiff data VERB ...`: images and captions as shards, an index of them, and views to train on."""

import collections
import dataclasses
import itertools
import os
import sys
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import tyro

from jdiff.cli.arguments import Verbs, chosen, show
from jdiff.cli.data_encode import Encode, encode
from jdiff.terminal import printable

_MOST = 80
"""Characters of a licence or domain that are shown."""
_NEEDS = "jdiff data needs the extra `data`, which has pyarrow and duckdb: pip install 'jdiff[data]'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack:
    """What `jdiff data pack` takes."""

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
    """What `jdiff data index` takes."""

    shards: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Tar or ArrayRecord files, folders of them, or URLs of tar files. A table that img2dataset left beside a shard is
    read with it."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder of the index; what it holds already is not read again."""
    depth: str = "pixels"
    """How far shards are read: "headers", "bytes" (adds sha256) or "pixels" (adds thumbnail, and rejects what cannot be
    decoded)."""
    workers: int = 2
    """Processes."""
    max_reject_rate: float = 0.2
    """Stop, naming the shard, when more of the examples than this are rejected."""
    failed: bool = False
    """Count what img2dataset could not download as rejected, by reason, where its tables say so."""
    json: bool = False
    """Print the figures as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter:
    """What `jdiff data filter` takes."""

    index: Annotated[Path, tyro.conf.Positional]
    """Folder of the index."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """File of the view."""
    where: str = "true"
    """SQL over the columns of the index, the fields of the json members, scores, `duplicate` and `cluster`."""
    weight: str | None = None
    """SQL: how often a row is drawn, relative to the others; each once an epoch without it."""
    repair: str = ""
    """Caption rules, separated by commas, applied in turn: html, file_names, boilerplate."""
    tags: str | None = None
    """SQL: the tags of a row, separated by commas or as a JSON list, for templates of captions in the stream."""
    captions: Path | None = None
    """Parquet file with shard, key and caption, as a captioning model wrote it, in place of the index's captions."""
    opt_out: Path | None = None
    """File of URLs, domains or SHA-256 of images to leave out, one a line."""
    json: bool = False
    """Print the figures as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dedup:
    """What `jdiff data dedup` takes."""

    index: Annotated[Path, tyro.conf.Positional]
    """Folder of the index; its rows get the columns `duplicate` and `cluster`."""
    by: str = "pictures"
    """What is compared: "pictures", "captions" (columns caption_duplicate and caption_cluster), or the "embeddings"
    that `jdiff data score` wrote (embedding_duplicate and embedding_cluster)."""
    distance: float | None = None
    """How far apart near duplicates may be: of pictures 0 is equal and 2 nothing in common, 0.15 unless given; of
    captions and embeddings it is 1 minus the cosine, 0.1 and 0.05 unless given. -1 for exact copies alone."""
    json: bool = False
    """Print the figures as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """What `jdiff data score` takes."""

    index: Annotated[Path, tyro.conf.Positional]
    """Folder of the index; its rows get the scorer's columns. What is scored already is not scored again."""
    scorer: str
    """sharpness, faces, open_nsfw, clip (picture and caption), aesthetic, nsfw or watermark."""
    clip: str | None = None
    """Of the last four: a CLIP in the layout of transformers, a folder or a name on the hub."""
    head: Path | None = None
    """Of the last three: a safetensors file with the weight and bias of a linear head over CLIP's embedding."""
    embeddings: bool = False
    """Of clip: write the embeddings of the pictures too."""
    json: bool = False
    """Print the figures as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `jdiff data report` takes."""

    index: Annotated[Path, tyro.conf.Positional]
    """Folder of the index."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("report.png")
    """Where the picture goes."""
    view: Path | None = None
    """A view of the index: the report states what it chose, and the list of opt-outs that it applied."""
    json: bool = False
    """Print the figures as JSON."""


def _pack(arguments: Pack) -> None:
    from jdiff.data.pack import pack

    left_out: dict[str, int] = {}
    shards = pack(
        arguments.folder,
        arguments.out,
        per_shard=arguments.per_shard,
        progress=_counted("packed"),
        left_out=left_out.update,
    )
    figures = {"out": str(arguments.out), "shards": len(shards), "bytes": sum(path.stat().st_size for path in shards)}
    lines = [f"files left out: {', '.join(f'{reason} {count}' for reason, count in left_out.items())}"] * bool(left_out)
    figures["left_out"] = left_out
    show(arguments, figures, f"{len(shards)} shards in {arguments.out}, {figures['bytes']:,} bytes", *lines)


def _index(arguments: Index) -> None:
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
        progress=lambda part, done, total: _counted("indexed")(done, total),
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


def _filter(arguments: Filter) -> None:
    from jdiff.data.filter import Recipe, make_view

    recipe = Recipe(
        where=arguments.where,
        weight=arguments.weight,
        repairs=tuple(rule.strip() for rule in arguments.repair.split(",") if rule.strip()),
        tags=arguments.tags,
        captions=arguments.captions,
        opt_out=_lines(arguments.opt_out) if arguments.opt_out else (),
    )
    made = make_view(arguments.index, arguments.out, recipe)
    told = ["recaptioned"] if arguments.captions else []
    counts = {name: count for name, count in made.items() if name.startswith("rejected: ") or name in told}
    figures = {"out": str(arguments.out), "rows": made["rows"], "fingerprint": made["fingerprint"]} | counts
    lines = [f"{name}: {count}" for name, count in counts.items()]
    show(arguments, figures, f"{arguments.out}: {made['rows']} rows, fingerprint {made['fingerprint'][:8]}", *lines)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"opt_out {path} must be UTF-8: {error}") from error


def _dedup(arguments: Dedup) -> None:
    from jdiff.data.dedup import deduplicate
    from jdiff.data.sql import DEDUP

    made = deduplicate(arguments.index, by=arguments.by, distance=arguments.distance)
    show(
        arguments,
        made,
        f"{made['rows']} rows = {made['kept']} kept + {made['exact']} exact + {made['near']} near duplicates; "
        f"the largest cluster has {made['largest_cluster']}",
        f"kept: {made['rule']}; leave duplicates out by --where 'not {DEDUP[arguments.by][0]}'",
    )


def _score(arguments: Score) -> None:
    from jdiff.data.scores import score

    counts = score(arguments.index, _scorer(arguments), progress=_counted("scored shards"))
    show(
        arguments,
        counts,
        f"{counts['examples']} examples of {counts['shards']} shards scored by {arguments.scorer}, "
        f"{counts['cannot_be_decoded']} of them cannot be decoded; {counts['shards_before']} shards had their scores",
    )


def _scorer(arguments: Score) -> Any:
    takes = {"sharpness": (), "faces": (), "open_nsfw": (), "clip": ("clip", "embeddings")}
    takes |= dict.fromkeys(("aesthetic", "nsfw", "watermark"), ("clip", "head"))
    name = arguments.scorer
    if name not in takes:
        raise ValueError(f"--scorer must be one of {', '.join(takes)}; got {name}")
    for option, what in (("clip", "FOLDER of a CLIP with its weights"), ("head", "FILE.safetensors with its weights")):
        if option in takes[name] and getattr(arguments, option) is None:
            raise ValueError(f"scorer {name} needs --{option} {what}")
    for option in ("clip", "head", "embeddings"):
        if option not in takes[name] and getattr(arguments, option):
            raise ValueError(f"scorer {name} takes no --{option}; got {getattr(arguments, option)}")
    if not takes[name]:
        from jdiff.data.scorers import Faces, OpenNsfw, Sharpness

        return {"sharpness": Sharpness, "faces": Faces, "open_nsfw": OpenNsfw}[name]()
    from jdiff.pipelines import ClipScorer, HeadScorer

    if name == "clip":
        return ClipScorer(arguments.clip, embeddings=arguments.embeddings)  # pyright: ignore[reportArgumentType]
    return HeadScorer(name, arguments.clip, arguments.head)  # pyright: ignore[reportArgumentType]


def _report(arguments: Report) -> None:
    from jdiff.data.index import told
    from jdiff.data.report import draw, report, told_of_view

    figures = report(arguments.index, arguments.view)
    draw(figures, arguments.out)
    del figures["_values"]
    lines = [f"{figures['seen']} examples seen = {figures['used']} used + {figures['seen'] - figures['used']} rejected"]
    lines += [f"rejected    {told(figures['rejected'])}", f"formats     {told(figures['formats'])}"]
    for name in ("width", "height", "aspect_ratio", "caption_letters"):
        lines.append(f"{name:11} {', '.join(f'{key} {value:g}' for key, value in figures[name].items())}")
    for name in ("domains", "licences"):
        counts = {printable(key, most=_MOST) or "not stated": count for key, count in figures[name].items()}
        lines.append(f"{name:11} {told(counts)}")
    copies = figures["duplicates"]
    lines.append(f"duplicates  {'exact {exact}, near {near}'.format(**copies) if copies else 'not looked for'}")
    lines.append(f"view        {told_of_view(figures['view'])}")
    show(arguments, figures, *lines, f"picture: {arguments.out}")


def _encode(arguments: Encode) -> None:
    figures = encode(arguments, _counted)
    lines = [
        f"{kind}: {', '.join(f'{count} {name}' for name, count in figures[kind].items())}"
        for kind in ("images", "texts")
        if kind in figures
    ]
    show(arguments, figures, f"{arguments.out}: float16", *lines)


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
    others = sorted(set(names) - set(shards) - tables)
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


def _counted(what: str) -> Any:
    """Progress, on standard error where somebody watches it."""

    def tell(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\r\033[K" if done == total else ""
            print(f"\r\033[K{what} {done} of {total}{end}", end="", file=sys.stderr, flush=True)

    return tell


VERBS: Verbs = {
    "pack": (Pack, _pack, "make shards of a folder of images"),
    "index": (Index, _index, "read shards once and write a table of their examples"),
    "filter": (Filter, _filter, "choose rows of an index by SQL: a view to train on"),
    "dedup": (Dedup, _dedup, "find exact and near duplicates in an index, of pictures, captions or embeddings"),
    "encode": (Encode, _encode, "write latents and text embeddings of a view, to train on"),
    "score": (Score, _score, "give every picture of an index a score"),
    "report": (Report, _report, "say and draw what an index holds"),
}


def main(words: list[str]) -> None:
    act, arguments = chosen("jdiff data", VERBS, words)
    try:
        act(arguments)
    except ModuleNotFoundError as error:
        if error.name not in ("pyarrow", "duckdb", "fsspec"):
            raise
        raise ValueError(_NEEDS) from error
