"""Error curves on logarithmic axes, beside straight lines of whole orders."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jdiff.atomic_files import replaced


def draw_errors(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], path: Path, *, title: str, error: str, orders=(1, 2, 3)
) -> None:
    """A PNG of error over network evaluations, one line a curve, {name: (evaluations, errors)}."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    markers = "osD^vP*Xh"
    colours = plt.get_cmap("tab10" if len(curves) <= 10 else "turbo")(
        np.arange(len(curves)) if len(curves) <= 10 else np.linspace(0.02, 0.95, len(curves))
    )
    for number, (name, (nfe, errors)) in enumerate(curves.items()):
        axes.plot(
            nfe,
            errors,
            marker=markers[number % len(markers)],
            ms=5,
            lw=1.6,
            color=colours[number],
            label=name,
            zorder=3,
        )
    every = np.concatenate([np.asarray(nfe, float) for nfe, _ in curves.values()])
    values = np.concatenate([np.asarray(errors, float) for _, errors in curves.values()])
    low, high = every.min(), every.max()
    if high > low:
        for order in orders:
            slope = np.median(values) * (np.array([low, high]) / np.sqrt(low * high)) ** -float(order)
            axes.plot([low, high], slope, ls=":", lw=1, color="0.6", zorder=1)
            axes.annotate(f" order {order}", (low, slope[0]), color="0.45", fontsize=8, va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel=error, title=title)
    axes.set_ylim(values.min() / 2, values.max() * 2)
    ticks = sorted(set(every.astype(int)))
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=1 if len(curves) <= 10 else 2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with replaced(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format=path.suffix.lstrip(".") or "png")
    plt.close(figure)
