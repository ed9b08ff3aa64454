"""`jdiff sample RUN`: draws images from a run's averaged parameters; a grid and single PNGs.

`jdiff sample --from FOLDER PROMPT` draws from prompts: `jdiff sample --from --help`."""

import contextlib
import dataclasses
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jdiff.cli import prompts
from jdiff.cli.arguments import parse
from jdiff.cli.drawing import About, Drawing, chunks, free, mark
from jdiff.config import to_dict
from jdiff.data import find_class
from jdiff.locks import locked
from jdiff.pipelines import Sampling
from jdiff.train.loop import every_class
from jdiff.train.paths import Moved
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
    """Directory for the images; in the run's draws/ by default. One that holds other images is refused; the same
    command again draws what is not there yet."""
    data: Moved = dataclasses.field(default_factory=Moved)
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
    with contextlib.ExitStack() as held:
        if arguments.out is not None:
            check = held.enter_context(locked(arguments.out, what="sampling"))
        run = open_run(arguments.run, arguments.data)
        trainer, sigma = run.trainer, arguments.sigma_rel
        given = {
            f.name: value for f in dataclasses.fields(Sampling) if (value := getattr(arguments, f.name)) is not None
        }
        decode, edge = decoder(trainer)
        null, cond = _captions(trainer, arguments, edge)
        pipeline = trainer.pipeline(arguments.chunk, null, **{k: v for k, v in given.items() if v is not None})
        label = every_class(trainer, arguments.n)
        if arguments.name is not None:
            chosen = trainer.num_classes if arguments.name == "none" else find_class(run.class_names, arguments.name)
            label = np.full(arguments.n, chosen)
        params, step = _of(run.state()) if sigma is None else profile(run, sigma)
        about = _about(arguments, trainer, pipeline.sampling, {"step": step, "parameters": mark(params)})
        out = arguments.out or free(_directory(arguments, pipeline.sampling), about)
        if arguments.out is None:
            check = held.enter_context(locked(out, what="sampling"))
        drawing = Drawing(out, about)
        start = time.monotonic()
        missing = drawing.missing(arguments.n)
        try:
            for numbers in chunks(missing, pipeline.chunk):
                here = None if cond is None else {name: value[numbers] for name, value in cond.items()}
                images = pipeline(params, seed=arguments.seed, index=numbers, label=label[numbers], cond=here)
                check()
                drawing.save(numbers, decode(images))
                drawing.tell(sum(number > numbers[-1] for number in missing))
            grid = drawing.grid(arguments.n, max(1, round(arguments.n**0.5)), enlarge=True)
        except KeyboardInterrupt:
            raise drawing.interrupted(arguments.n) from None
    seconds = time.monotonic() - start
    figures = {"picture": str(grid), "n": arguments.n, "drawn": len(missing), "step": step, "seconds": seconds}
    figures |= dataclasses.asdict(pipeline.sampling)
    if arguments.json:
        print(json.dumps(figures))
        return
    there = f", {arguments.n - len(missing)} of them there already" if len(missing) < arguments.n else ""
    print(f"{arguments.n} images from step {step}{there} in {seconds:.1f} s, compilation included: {grid}")
    if credit := trainer.experiment.data.credit:
        print(credit)


def _about(arguments: Sample, trainer: Trainer, sampling: Sampling, of: dict[str, Any]) -> About:
    """What each picture depends on, but for the classes that are drawn in turn, which its number tells."""
    config = to_dict(trainer.experiment)
    parts = {name: config[name] for name in ("network", "process", "parameterization")}
    common = {
        **of,
        "parts": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16],
        "seed": arguments.seed,
        "class": arguments.name,
        "prompt": arguments.prompt,
        **dataclasses.asdict(sampling),
    }
    return lambda number: common | {"number": number}


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
