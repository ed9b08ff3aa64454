"""`jdiff evaluate RUN`: held-out loss by noise level, and distances of samples to held-out images beside the floor."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro

from jdiff.atomic_files import write_atomically
from jdiff.cli.arguments import parse
from jdiff.data import Latents, Source, open_source, ordered
from jdiff.evaluate import NAME, Distances, draw_losses, loss_by_level, measure
from jdiff.locks import locked
from jdiff.samplers import GRIDS
from jdiff.train.paths import Moved
from jdiff.train.restore import open_run
from jdiff.train.run import check_data, read_experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What `jdiff evaluate` takes."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run directory."""
    n: int | None = None
    """Samples for the distances, and training images for the floor; by default 256, or all where there are fewer."""
    seeds: int = 3
    """How often the distances are measured, with other samples."""
    levels: int = 10
    """Noise levels of the loss, spread as the run's sampling grid is."""
    data: Moved = dataclasses.field(default_factory=Moved)
    out: Path | None = None
    """Folder of evaluate.json and evaluate.png, which are of the last evaluation; each one stays in evaluate/ beside
    them. The run by default."""
    json: bool = False
    """Print the figures as JSON."""


def everything(source: Source) -> tuple[np.ndarray, np.ndarray | None]:
    """All images of a source [N, H, W, 3], and their labels where there are any."""
    parts = list(ordered(source, 256))
    labels = np.concatenate([part["label"] for part in parts]) if source.class_names else None
    return np.concatenate([part["image"] for part in parts]), labels


def main(words: list[str]) -> None:
    arguments = parse(Evaluate, words, prog="jdiff evaluate", description=__doc__ or "")
    if arguments.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {arguments.seeds}")
    out = arguments.out or arguments.run
    read_experiment(arguments.run)
    # Not the run itself: it may be training.
    with locked(out / "evaluate", what="evaluating") as check:
        figures, distances = _measured(arguments, out, check)
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"loss by noise level (picture: {out / 'evaluate.png'})\n  sigma/alpha   held out      train")
    for level in figures["loss"]:
        print(f"{level['noise']:13.4g} {level['held_out']:10.4f} {level['train']:10.4f}")
    print(f"distance to {distances.held_out} held-out images in {NAME}, {arguments.seeds} seeds, mean (std)")
    row = lambda values: f"{np.mean(values):9.4f} ({np.std(values):.4f})"
    n = distances.samples
    print(f"  {n} samples          Frechet {row(distances.frechet)}   MMD^2 {row(distances.mmd)}")
    print(f"  {n} training images  Frechet {row(distances.frechet_floor)}   MMD^2 {row(distances.mmd_floor)}")


def _measured(arguments: Evaluate, out: Path, check: Callable[[], None]) -> tuple[dict[str, Any], Distances]:
    """The figures, which are written when there are all of them."""
    run = open_run(arguments.run, arguments.data)
    trainer, experiment = run.trainer, run.trainer.experiment
    if isinstance(experiment.data, Latents):
        raise ValueError(f"{arguments.run} was trained on latents, and this measures images; `jdiff sample` draws them")
    state = run.state()
    params = state.ema
    source = open_source(experiment.data, "train")
    check_data(arguments.run, source)
    train, train_labels = everything(source)
    held_out, held_out_labels = everything(open_source(experiment.data, "held_out"))

    n = min(256, len(train)) if arguments.n is None else arguments.n
    times = GRIDS[experiment.sampling.grid](experiment.process, arguments.levels)
    losses = {
        name: loss_by_level(
            trainer.network, params, experiment.process, experiment.parameterization, experiment.loss, *images, times
        )
        for name, images in {
            "held_out": (held_out, held_out_labels),
            "train": (train[: len(held_out)], None if train_labels is None else train_labels[: len(held_out)]),
        }.items()
    }
    noise = np.asarray(jnp.exp(-experiment.process.log_snr(times) / 2))
    pipeline = trainer.pipeline(64)
    # Samples are asked for in the classes of training images, so that both sides have the same share of each.
    labels = None if train_labels is None else np.random.default_rng(0).choice(train_labels, n)
    draw = lambda seed: pipeline(params, seed=seed, index=range(n), label=labels)
    distances = measure(draw, train, held_out, n, arguments.seeds)

    figures = {
        "step": int(state.step),
        "loss": [
            {"noise": float(a), "held_out": float(b), "train": float(c)}
            for a, b, c in zip(noise, losses["held_out"], losses["train"], strict=True)
        ],
        "features": NAME,
        **dataclasses.asdict(distances),
    }
    name = f"step{int(state.step)}_n{n}_seeds{arguments.seeds}_levels{arguments.levels}"
    check()
    for place in (out / "evaluate" / name, out / "evaluate"):
        draw_losses(noise, losses["held_out"], losses["train"], place.with_name(f"{place.name}.png"))
        write_atomically(place.with_name(f"{place.name}.json"), json.dumps(figures, indent=2) + "\n")
    return figures, distances
