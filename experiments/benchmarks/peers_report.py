"""The tables and the picture of solvers_vs_peers.py."""

import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

GREY, DARK, PALE, BLUE, RED = "#c9ced6", "#5b6470", "#a9cbe8", "#1668a8", "#d1410c"
PACKAGES = ("diffusers", "k-diffusion", "torch", "jax", "numpy")


def best(rows: list[dict], target: str, nfe: int) -> dict | None:
    """The row of this budget with the least error."""
    return min((row for row in rows if row["nfe"] == nfe), key=lambda row: row["error"][target], default=None)


def budgets(figures: dict) -> list[int]:
    return sorted({row["nfe"] for row in figures["peers"]})


def _named(row: dict) -> str:
    """The method and its grid, as a table says it."""
    package = {"diffusers": "diffusers ", "k-diffusion": "k-diffusion "}.get(row["package"], "")
    grid = "" if row["grid"].endswith(".json") else f", {row['grid']}"
    return f"{package}{row['method'].removesuffix(' searched')}{grid}"


def _against(ours: dict | None, peer: float, target: str) -> tuple[str, str]:
    if ours is None:
        return "-", "-"
    error = ours["error"][target]
    return f"{error:.1e}", f"{error / peer:.2f}"


def target_table(figures: dict, target: str) -> list[str]:
    """Markdown lines: for each budget the best peer, our best on a standard grid, and the best searched grid."""
    titles = ["NFE", "best peer", "error", "ours, standard grid", "error", "ratio", "ours, searched", "error", "ratio"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for nfe in budgets(figures):
        peer = best(figures["peers"], target, nfe)
        if peer is None:
            continue
        least = peer["error"][target]
        cells = [str(nfe), _named(peer), f"{least:.1e}"]
        for side in ("jdiff", "searched"):
            row = best(figures[side], target, nfe)
            cells += [_named(row) if row else "-", *_against(row, least, target)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


AIMS = {
    "our best solver on a standard grid is at least as accurate as the best peer": ("jdiff", 1.0),
    "searched on other starts of the ring of 8, at most half the best peer's error": ("searched", 0.5),
}


def verdicts(figures: dict) -> list[str]:
    """What was aimed at, and where it was missed."""
    lines = []
    for aim, (side, most) in AIMS.items():
        for target in figures["targets"]:
            missed = []
            for nfe in budgets(figures):
                peer, row = best(figures["peers"], target, nfe), best(figures[side], target, nfe)
                ratio = row["error"][target] / peer["error"][target] if row and peer else math.inf
                if ratio > most * 1.001:  # peers round to float32 inside: the same method is not the same to all digits
                    missed.append(f"{nfe} (ratio {ratio:.2f})")
            said = f"missed at NFE {', '.join(missed)}" if missed else "met at every budget"
            lines.append(f"- {aim}; {target}: {said}.")
    return lines


def all_methods(figures: dict) -> list[str]:
    """Markdown lines: every method on the first target, over the grid that suits it best at each budget."""
    target = figures["targets"][0]
    lines = ["| method | " + " | ".join(f"NFE {nfe}" for nfe in budgets(figures)) + " |"]
    lines.append("|---|" + "---|" * len(budgets(figures)))
    for side in ("peers", "jdiff", "searched"):
        for package, method in dict.fromkeys((row["package"], row["method"]) for row in figures[side]):
            mine = [row for row in figures[side] if (row["package"], row["method"]) == (package, method)]
            found = [best(mine, target, nfe) for nfe in budgets(figures)]
            told = [f"{row['error'][target]:.1e}" if row else "" for row in found]
            lines.append(f"| {package} {method} | " + " | ".join(told) + " |")
    return lines


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package}, version unknown"


def markdown(figures: dict) -> str:
    """The whole file."""
    first = figures["targets"][0]
    parts = [
        "# Our solvers beside those of diffusers and k-diffusion",
        "",
        "![error against evaluations](solvers_vs_peers.png)",
        "",
        "Error of the end of the probability-flow ODE from sigma = 80 to 0.002: root mean square over 2048 starts and",
        "both coordinates, against RK4 with 4000 steps in log sigma; float64, exact denoiser, no final denoising. Of",
        "every method, the best of six standard grids is shown for each budget; a ratio is our error",
        "over the best peer's, below 1 where ours is less. Made by `experiments/benchmarks/solvers_vs_peers.py`, whose",
        "docstring has the commands. Such targets prove correctness and order; they do not rank quality of images.",
        "",
        f"{', '.join(map(_version, PACKAGES))}, Python {platform.python_version()}.",
        "",
        "## What was aimed at",
        "",
        *verdicts(figures),
    ]
    for target in figures["targets"]:
        parts += ["", f"## {target.capitalize()}", "", *target_table(figures, target)]
    parts += [
        "",
        "Grids were searched on 512 starts that are not the 2048, on the ring of 8 alone: the other targets show how",
        "far they carry. `times` are grids alone, `times and weights` have weights of the method's values with them;",
        "three searches a budget, the best of which is in the table. They are in `grids/`, for `load_grid`.",
        "",
        "## float32",
        "",
        "diffusers' schedulers hold sigmas in float32. In the tables they are handed float64. This is the best of them",
        "with the sigmas rounded: its error, and how far its end moves, which is the floor of such a scheduler.",
        "",
        "| NFE | scheduler | error, float64 sigmas | error, float32 sigmas | RMS change |",
        "|---|---|---|---|---|",
    ]
    for row in figures["float32"]:
        values = " | ".join(f"{row[name]:.2e}" for name in ("float64", "float32", "apart"))
        parts.append(f"| {row['nfe']} | {row['method']} | {values} |")
    parts += ["", "## Adaptive", "", f"k-diffusion's `sample_dpm_adaptive` on the {first}, with its own NFE.", ""]
    parts += ["| method | NFE | error |", "|---|---|---|"]
    parts += [f"| {row['method']} | {row['nfe']} | {row['error']:.1e} |" for row in figures["adaptive"]]
    parts += ["", f"## Every method on the {first}", "", *all_methods(figures), ""]
    return "\n".join(parts)


def _lines(ax: Axes, rows: list[dict], target: str, **style) -> None:
    """One line a method, over the grid that suits it best at each budget."""
    for method in dict.fromkeys((row["package"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["package"], row["method"]) == method]
        points = [
            (nfe, row["error"][target]) for nfe in sorted({r["nfe"] for r in mine}) if (row := best(mine, target, nfe))
        ]
        ax.plot(*zip(*points, strict=True), **style)


def _panel(ax: Axes, figures: dict, target: str, labels: bool) -> None:
    nfes, size = budgets(figures), 1.0 if labels else 0.7
    _lines(ax, figures["peers"], target, color=GREY, lw=0.7 * size, zorder=1)
    _lines(ax, figures["jdiff"], target, color=PALE, lw=0.9 * size, zorder=2)
    curves = [
        ("best peer", figures["peers"], DARK),
        ("ours, best on a\nstandard grid", figures["jdiff"], BLUE),
        ("ours, searched", figures["searched"], RED),
    ]
    ends = []
    for label, rows, color in curves:
        points = [(nfe, row["error"][target]) for nfe in nfes if (row := best(rows, target, nfe))]
        if not points:
            continue
        bold = {RED: 3.4, BLUE: 1.8, DARK: 4.2}[color]
        style = {"lw": bold * size, "marker": "o", "ms": 6.5 * size, "mec": "white", "mew": 0.8}
        ax.plot(*zip(*points, strict=True), color=color, zorder=5 if color == RED else 4, **style)
        ends.append((points[-1][1], label, color))
    ax.set(xscale="log", yscale="log", xlim=(4.6, 87))
    ax.set_xticks(nfes, [str(nfe) for nfe in nfes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    low = min(end[0] for end in ends)
    ax.set_ylim(low / 2, 0.9)
    ax.grid(axis="y", color="#eef0f3", lw=0.8, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#9aa2ad")
    ax.tick_params(color="#9aa2ad", which="both", labelsize=10 if labels else 8)
    if not labels:
        return
    # Labels at the ends of the lines, pushed apart where they would meet.
    height, below = 0.068, -1.0
    bottom, top = ax.get_ylim()
    at = lambda value: math.log(value / bottom) / math.log(top / bottom)
    for value, label, color in sorted(ends):
        y = max(at(value), below + height)
        ax.annotate(
            label, (1.015, y), xycoords="axes fraction", color=color, fontsize=10.5, va="center", fontweight="bold"
        )
        below = y


def picture(figures: dict, path: Path) -> None:
    """A large panel for the first target, small ones for the others."""
    first, *others = figures["targets"]
    figure = plt.figure(figsize=(12.6, 6.6))
    spec = figure.add_gridspec(len(others), 2, width_ratios=[2.1, 1], wspace=0.46, hspace=0.42)
    ax = figure.add_subplot(spec[:, 0])
    _panel(ax, figures, first, labels=True)
    ax.set_xlabel("evaluations of the denoiser", fontsize=11)
    ax.set_ylabel("error of the end point (RMS)", fontsize=11)
    ax.set_title(f"Probability-flow ODE of a {first} modes", loc="left", fontsize=13, fontweight="bold", pad=12)
    count = {side: len({(r["package"], r["method"]) for r in figures[side]}) for side in ("peers", "jdiff")}
    note = f"thin grey: {count['peers']} samplers of diffusers and k-diffusion\n"
    note += f"thin blue: {count['jdiff']} of ours; each over its best grid"
    ax.annotate(note, (0.03, 0.03), xycoords="axes fraction", fontsize=9.5, color=DARK, va="bottom")
    for row, target in enumerate(others):
        small = figure.add_subplot(spec[row, 1])
        _panel(small, figures, target, labels=False)
        small.set_title(f"{target}: not searched on", loc="left", fontsize=10, pad=5)
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def _best(rows: list[dict]) -> list[dict]:
    """The rows that are the best of their method and budget over the grids, on one of the targets."""
    least: dict[tuple, float] = {}
    keys = lambda row: [(row["method"], row["nfe"], target) for target in row["error"]]
    for row in rows:
        for key in keys(row):
            least[key] = min(least.get(key, float("inf")), row["error"][key[2]])
    return [row for row in rows if any(row["error"][key[2]] <= least[key] for key in keys(row))]


def _short(figures: dict) -> str:
    """JSON with a row a line, four digits of an error, and of the standard grids what is shown: the best."""
    figures = figures | {side: _best(figures[side]) for side in ("peers", "jdiff")}
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: float(f"{float(text):.4g}"))
    sides = []
    for name, value in rounded.items():
        rows = ",\n".join(map(json.dumps, value)) if isinstance(value, list) else json.dumps(value)
        sides.append(f"{json.dumps(name)}: [\n{rows}\n]" if isinstance(value, list) else f"{json.dumps(name)}: {rows}")
    return "{\n" + ",\n".join(sides) + "\n}"


def write(figures: dict, folder: Path) -> str:
    """Saves figures, tables and picture; returns what is to be printed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "solvers_vs_peers.json").write_text(_short(figures) + "\n")
    (folder / "solvers_vs_peers.md").write_text(markdown(figures))
    picture(figures, folder / "solvers_vs_peers.png")
    tables = [line for target in figures["targets"] for line in ("", target, *target_table(figures, target))]
    return "\n".join([*verdicts(figures), *tables])
