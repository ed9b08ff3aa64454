"""What `jdiff evaluate` measures, and its picture."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jdiff.atomic_files import replaced
from jdiff.evaluate import distances
from jdiff.evaluate.features import features


@dataclasses.dataclass(frozen=True)
class Distances:
    """Distances to the held-out images, one value a seed: of samples, and of as many training images (the floor)."""

    samples: int
    held_out: int
    frechet: list[float]
    frechet_floor: list[float]
    mmd: list[float]
    mmd_floor: list[float]


def measure(
    draw: Callable[[int], np.ndarray], train: np.ndarray, held_out: np.ndarray, n: int, seeds: int
) -> Distances:
    """`draw(seed)` gives n samples [n, H, W, C]. Raises ValueError for more samples than there are training images."""
    if not 2 <= n <= len(train):
        raise ValueError(f"n must be between 2 and the {len(train)} training images, got {n}")
    reference, real = features(held_out), features(train)
    result = Distances(n, len(held_out), [], [], [], [])
    for seed in range(seeds):
        drawn = features(draw(seed))
        chosen = real[np.random.default_rng(seed).choice(len(real), n, replace=False)]
        result.frechet.append(distances.frechet(drawn, reference))
        result.frechet_floor.append(distances.frechet(chosen, reference))
        result.mmd.append(distances.mmd(drawn, reference))
        result.mmd_floor.append(distances.mmd(chosen, reference))
    return result


def draw_losses(noise: np.ndarray, held_out: np.ndarray, train: np.ndarray, path: Path) -> None:
    """Loss over sigma / alpha, both curves, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.semilogx(noise, held_out, "o-", label="held-out images")
    axes.semilogx(noise, train, "o--", label="training images")
    axes.set_xlabel("noise level sigma / alpha")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend()
    with replaced(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    pyplot.close(figure)
