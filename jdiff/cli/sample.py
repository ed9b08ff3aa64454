"""`jdiff sample RUN`: draws images from a run's averaged parameters; a grid and single PNGs.

`jdiff sample --from FOLDER PROMPT` draws from prompts: `jdiff sample --from --help`."""

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jdiff import pictures
from jdiff.cli import prompts
from jdiff.cli.arguments import parse
from jdiff.data import find_class
from jdiff.pipelines import Sampling
from jdiff.train.loop import every_class
from jdiff.train.restore import open_run
from jdiff.train.shown import Conditions, decoder, prompted
from jdiff.train.snapshots import profile
from jdiff.train.state import TrainState
from jdiff.train.trainer import Trainer
from jdiff.typing import Params

HELP = (["--from", "--help"], ["--from", "-h"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """What `jdiff sample` takes."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run directory."""
    n: int = 64
    """How many images: numbers 0 to n - 1 of the seed, whatever n is."""
    seed: int = 0
    """Of the noise."""
    name: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """A class by its name or a unique part of it; "none" for the unconditional model; by default each class in turn."""
    prompt: str | None = None
    """What to draw, for a run with captions; an empty caption by default."""
    solver: str | None = None
    """A solver by its name (`jdiff lab --help` lists them); the run's own by default."""
    grid: str | None = None
    """A time grid by its name; the run's own by default."""
    steps: int | None = None
    """Times on the grid; the run's own by default."""
    guidance: float | None = None
    """Scale of classifier-free guidance; the run's own by default."""
    sigma_rel: float | None = None
    """Draw from the average of this relative width, put together from the snapshots of a run with `profiles`."""
    chunk: int = 16
    """Images drawn at once."""
    out: Path | None = None
    """Directory for the images; in the run's draws/ by default."""
    json: bool = False
    """Print the figures as JSON."""


def main(words: list[str]) -> None:
    if any(word.partition("=")[0] == "--from" for word in words):
        prompts.main(words[1:] if words in HELP else words)
        return
    arguments = parse(Sample, words, prog="jdiff sample", description=__doc__ or "")
    for field in ("n", "chunk"):
        if getattr(arguments, field) < 1:
            raise ValueError(f"--{field} must be at least 1, got {getattr(arguments, field)}")
    run = open_run(arguments.run)
    trainer = run.trainer
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Sampling)}
    decode, edge = decoder(trainer)
    null, cond = _captions(trainer, arguments, edge)
    pipeline = trainer.pipeline(arguments.chunk, null, **{k: value for k, value in given.items() if value is not None})
    label = every_class(trainer, arguments.n)
    if arguments.name is not None:
        chosen = trainer.num_classes if arguments.name == "none" else find_class(run.class_names, arguments.name)
        label = np.full(arguments.n, chosen)
    sigma = arguments.sigma_rel
    params, step = _of(run.state()) if sigma is None else profile(run, sigma)
    start = time.monotonic()
    images = pipeline(params, seed=arguments.seed, index=range(arguments.n), label=label, cond=cond)
    images = decode(images)
    seconds = time.monotonic() - start
    out = arguments.out or _directory(arguments, pipeline.sampling)
    for number, image in enumerate(images):
        pictures.save(pictures.to_uint8(image), out / f"{number:05d}.png")
    columns = max(1, round(arguments.n**0.5))
    grid = out / "grid.png"
    pictures.save(pictures.tile(images, columns), grid, enlarge=pictures.enlargement(images.shape[1]))
    figures = {"picture": str(grid), "n": arguments.n, "step": step, "seconds": seconds}
    figures |= dataclasses.asdict(pipeline.sampling)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"{arguments.n} images from step {step} in {seconds:.1f} s, compilation included: {grid}")
        if credit := trainer.experiment.data.credit:
            print(credit)


def _of(state: TrainState) -> tuple[Params, int]:
    return state.ema, int(state.step)


def _captions(trainer: Trainer, arguments: Sample, edge: int) -> tuple[Conditions, Conditions | None]:
    """The conditions of an empty caption, none where the run takes no captions, and those of what is asked for."""
    if not trainer.conditions and arguments.prompt is None:
        return {}, None
    told = prompted(trainer, ["", arguments.prompt or ""], edge)
    return {name: value[0] for name, value in told.items()}, {
        name: np.repeat(value[1:], arguments.n, 0) for name, value in told.items()
    }


def _directory(arguments: Sample, sampling: Sampling) -> Path:
    name = f"seed{arguments.seed}_{sampling.solver}{sampling.steps}_guidance{sampling.guidance:g}"
    asked = arguments.name if arguments.prompt is None else arguments.prompt
    words = "" if asked is None else "_" + "-".join(re.findall(r"[\w+-]+", asked))[:80]
    return arguments.run / "draws" / (name + words)
