"""`jdiff data VERB ...`: images and captions as shards, an index of them, and views to train on."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jdiff.cli.arguments import Verbs, chosen, show
from jdiff.cli.data_encode import Encode, encode
from jdiff.cli.data_shards import Index, Pack, counted, index_shards, pack_folder
from jdiff.terminal import printable

_MOST = 80
"""Characters of a licence or domain that are shown."""
_NEEDS = "jdiff data needs the extra `data`, which has pyarrow and duckdb: pip install 'jdiff[data]'"


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

    counts = score(arguments.index, _scorer(arguments), progress=counted("scored shards"))
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
    figures = encode(arguments, counted)
    lines = [
        f"{kind}: {', '.join(f'{count} {name}' for name, count in figures[kind].items())}"
        for kind in ("images", "texts")
        if kind in figures
    ]
    show(arguments, figures, f"{arguments.out}: float16", *lines)


VERBS: Verbs = {
    "pack": (Pack, pack_folder, "make shards of a folder of images"),
    "index": (Index, index_shards, "read shards once and write a table of their examples"),
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
