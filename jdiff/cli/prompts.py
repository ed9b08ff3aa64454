"""`jdiff sample --from FOLDER "PROMPT" ...`: pictures from prompts; a grid and single PNGs."""

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import tyro

from jdiff.cli.arguments import parse
from jdiff.cli.drawing import Drawing, chunks, free, mark
from jdiff.locks import locked
from jdiff.models import Compute
from jdiff.pipelines import TextToImage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """What `jdiff sample --from` takes."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """What to draw, a picture each."""
    folder: Annotated[str, tyro.conf.arg(name="from")]
    """A folder of Stable Diffusion 1, 2, XL or 3 in the layout of diffusers, or the name of one on the hub."""
    n: int = 1
    """Pictures of each prompt, with the seeds from `seed` on."""
    seed: int = 0
    """Of the first picture."""
    negative: str | None = None
    """What is moved away from."""
    steps: int = 20
    """Evaluations of the network with each of prompt and negative."""
    guidance: float = 7.5
    """Scale of classifier-free guidance; 1 for the prompt alone."""
    solver: str | None = None
    """A solver by its name (`jdiff lab --help` lists them); the folder's own by default."""
    height: int | None = None
    """In pixels; what the network was trained on by default."""
    width: int | None = None
    """In pixels; what the network was trained on by default."""
    long: str = "refuse"
    """What becomes of a prompt of too many tokens: "refuse" or "chunk"."""
    weights: bool = False
    """Read "(word:1.3)" in prompts as a weight, and BREAK as the beginning of another piece."""
    chunk: int = 4
    """Pictures drawn at once."""
    variant: str | None = None
    """Of the weights, such as "fp16", where a part of the folder has it."""
    dtype: str = "float32"
    """Of activations: "float32", "bfloat16" or "float16"."""
    out: Path | None = None
    """Directory for the pictures; samples by default, or a longer name where that holds others. One that is given and
    holds others is refused; the same command again draws what is not there yet."""
    json: bool = False
    """Print the figures as JSON."""


def main(words: list[str]) -> None:
    arguments = parse(Prompts, words, prog="jdiff sample", description=__doc__ or "")
    for field in ("n", "chunk"):
        if getattr(arguments, field) < 1:
            raise ValueError(f"--{field} must be at least 1, got {getattr(arguments, field)}")
    if not arguments.prompts:
        raise ValueError("a prompt is missing: jdiff sample --from FOLDER PROMPT")
    jobs = [(prompt, arguments.seed + i) for prompt in arguments.prompts for i in range(arguments.n)]
    with contextlib.ExitStack() as held:
        if arguments.out is not None:
            check = held.enter_context(locked(arguments.out, what="sampling"))
        pipeline = TextToImage.from_pretrained(
            arguments.folder, variant=arguments.variant, compute=Compute(dtype=arguments.dtype)
        )
        names = ("steps", "guidance", "solver", "height", "width", "long", "weights")
        options = {name: getattr(arguments, name) for name in names}
        common = {"parameters": mark(pipeline.params), "schedule": repr(pipeline.schedule), "dtype": arguments.dtype}
        common |= {"negative": arguments.negative} | options
        own = [{"prompt": prompt, "seed": seed} for prompt, seed in jobs]
        about = lambda number: common | own[number] if number < len(own) else None
        out = arguments.out or free(Path("samples"), about)
        if arguments.out is None:
            check = held.enter_context(locked(out, what="sampling"))
        drawing = Drawing(out, about)
        start = time.monotonic()
        missing = drawing.missing(len(jobs))
        try:
            for numbers in chunks(missing, arguments.chunk):
                here = [jobs[number] for number in numbers]
                # The last ones are drawn with others beside them, so that nothing is compiled for a smaller number.
                filled = here + here[:1] * (min(arguments.chunk, len(jobs)) - len(here))
                prompts, seeds = zip(*filled, strict=True)
                negative = None if arguments.negative is None else [arguments.negative] * len(filled)
                images = pipeline(prompts, seeds=seeds, negative=negative, **options)[: len(here)]
                check()
                drawing.save(numbers, images)
                drawing.tell(sum(number > numbers[-1] for number in missing))
            columns = arguments.n if arguments.n > 1 else max(1, round(len(jobs) ** 0.5))
            grid = drawing.grid(len(jobs), columns)
        except KeyboardInterrupt:
            raise drawing.interrupted(len(jobs)) from None
    seconds = time.monotonic() - start
    figures = {
        "picture": str(grid),
        "n": len(jobs),
        "drawn": len(missing),
        "seed": arguments.seed,
        "seconds": seconds,
    } | options
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"{len(jobs)} pictures in {seconds:.1f} s, compilation included: {grid}")
