"""What an index holds, in figures and one picture: sizes, captions, duplicates, rejects, and where it comes from."""

import collections
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq

from jdiff.data.parts import fingerprint, parts_of, told
from jdiff.data.sql import dedup_of
from jdiff.data.view import View
from jdiff.json_files import parse_object
from jdiff.terminal import printable

_SHOWN = 20
_LICENCES = ("license", "licence", "LICENSE")


def report(index: Path, view: Path | None = None) -> dict[str, Any]:
    """The figures of an index as plain values; `domains` and `licences` are counts of the most frequent, by name, of
    the fields `url` and `license` of the records, and "" counts the examples without.

    With a `view` of the index, `view` is what that chose and left out, and the list of opt-outs that it applied. Raises
    ValueError for a view of another index, or of this one before it changed.
    """
    parts = parts_of(index)
    chosen = _chosen(index, fingerprint(parts.values()), view) if view else None
    rejected, domains, licences, formats = (collections.Counter() for _ in range(4))
    sides, letters = [], []
    for path, part in parts.items():
        rejected.update(part.rejected)
        table = pq.read_table(path, columns=["format", "width", "height", "caption", "json", "reject"])
        table = table.filter(table["reject"].is_null())
        sides.append(np.stack([table["width"].to_numpy(), table["height"].to_numpy()], -1))
        letters.append(np.array([len(caption) for caption in table["caption"].to_pylist()], np.int64))
        formats.update(table["format"].to_pylist())
        for text in table["json"].to_pylist():
            record = parse_object(text or "{}", f"a record in {path}")
            domains[_domain(record.get("url"))] += 1
            licences[str(next((record[name] for name in _LICENCES if record.get(name) is not None), ""))] += 1
    width, height = np.concatenate(sides).T if sides else np.zeros((2, 0))
    duplicates = dedup_of(index, "pictures", fingerprint(parts.values()))
    if duplicates:
        del duplicates["index"]
    lengths = np.concatenate(letters)
    return {
        "shards": len(parts),
        "seen": sum(part.seen for part in parts.values()),
        "used": len(lengths),
        "rejected": dict(rejected.most_common()),
        "formats": dict(formats.most_common()),
        "width": _spread(width),
        "height": _spread(height),
        "aspect_ratio": _spread(width / height),
        "caption_letters": _spread(lengths),
        "duplicates": duplicates,
        "domains": dict(domains.most_common(_SHOWN)),
        "licences": dict(licences.most_common(_SHOWN)),
        "bytes_read": sum(part.bytes_read for part in parts.values()),
        "bytes_needed": sum(part.bytes_needed for part in parts.values()),
        "fingerprint": fingerprint(parts.values()),
        "view": chosen,
        "_values": {"width": width, "height": height, "letters": lengths},
    }


def _chosen(index: Path, mark: str, path: Path) -> dict[str, Any]:
    view = View(path)
    if view.described.get("index") != mark:
        raise ValueError(f"view {path} is of another index than {index}, or of this one before it changed")
    recipe = {name: view.described.get(name) for name in ("where", "weight", "repairs", "tags", "captions", "opt_out")}
    if not isinstance(recipe["opt_out"], dict) or recipe["opt_out"].keys() != {"sha256", "lines"}:
        raise ValueError(f"view {path} does not say which list of opt-outs it applied: filter again")
    return recipe | {"file": str(path), "fingerprint": view.fingerprint, "counts": view.counts}


def told_of_view(chosen: dict[str, Any] | None) -> str:
    """What a view of the index chose and which list of opt-outs it applied, in words."""
    if chosen is None:
        return "none named, so no list of opt-outs is stated"
    counts, listed = chosen["counts"], chosen["opt_out"]
    left = {name.removeprefix("rejected: "): count for name, count in counts.items() if name.startswith("rejected: ")}
    gone = left.pop("opted out", 0)
    applied = f"{listed['lines']} lines, SHA-256 {listed['sha256'][:16]}, left out {gone} rows"
    words = [f"{chosen['file']}: {counts['rows']} rows where {chosen['where']}"]
    words += [f"opt-out list: {applied if listed['lines'] else 'none applied'}"]
    return "; ".join([*words, *([f"also left out: {told(left)}"] if left else [])])


def _domain(url: Any) -> str:
    try:
        return (urlsplit(url).hostname or "") if isinstance(url, str) else ""
    except ValueError:
        return ""


def _spread(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    marks = {"least": 0, "tenth": 10, "median": 50, "nine_tenths": 90, "most": 100}
    return {name: round(float(np.percentile(values, mark)), 4) for name, mark in marks.items()}


def draw(figures: dict[str, Any], path: Path) -> None:
    """The picture of a report: four histograms, and bars of what is rejected or a duplicate."""
    from matplotlib.figure import Figure

    values = figures["_values"]
    figure = Figure((12, 7), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    pixels = np.sqrt(values["width"].astype(float) * values["height"])
    _histogram(axes[0], pixels, "side of the square of the same area, pixels")
    _histogram(axes[1], values["width"] / np.maximum(values["height"], 1), "width / height")
    _histogram(axes[2], values["letters"], "letters in a caption")
    copies = figures["duplicates"]
    bars = {name: copies[name] for name in ("kept", "exact", "near")} if copies else {}
    _bars(axes[3], bars, "duplicates" if copies else "duplicates: not looked for")
    _bars(axes[4], figures["rejected"], f"rejected: {figures['seen'] - figures['used']} of {figures['seen']}")
    _bars(axes[5], figures["domains"], "domains")
    if figures["view"]:
        figure.suptitle(printable(f"view {told_of_view(figures['view'])}"), wrap=True, parse_math=False)
    figure.savefig(path, dpi=100)


def _histogram(axes: Any, values: np.ndarray, label: str) -> None:
    if len(values):
        low, high = max(values.min(), 1e-3), values.max()
        wide = high > 20 * low
        axes.hist(values, bins=np.geomspace(low, high, 40) if wide else 40, color="tab:blue")
        axes.set_xscale("log" if wide else "linear")
    axes.set(xlabel=label, ylabel="examples")


def _bars(axes: Any, counts: dict[str, int], title: str) -> None:
    names = list(counts)[:12][::-1]
    axes.barh(range(len(names)), [counts[name] for name in names], color="tab:orange")
    # Names of strangers: a dollar sign would begin a formula.
    axes.set_yticks(range(len(names)), [printable(name, most=40) or "none" for name in names], parse_math=False)
    axes.set(title=title, xlabel="examples")
