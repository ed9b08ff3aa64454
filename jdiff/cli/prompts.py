"""`jdiff sample --from FOLDER "PROMPT" ...`: pictures from prompts; a grid and single PNGs."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jdiff import pictures
from jdiff.cli.arguments import parse
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
    out: Path = Path("samples")
    """Directory for the pictures."""
    json: bool = False
    """Print the figures as JSON."""


def main(words: list[str]) -> None:
    arguments = parse(Prompts, words, prog="jdiff sample", description=__doc__ or "")
    for field in ("n", "chunk"):
        if getattr(arguments, field) < 1:
            raise ValueError(f"--{field} must be at least 1, got {getattr(arguments, field)}")
    if not arguments.prompts:
        raise ValueError("a prompt is missing: jdiff sample --from FOLDER PROMPT")
    pipeline = TextToImage.from_pretrained(
        arguments.folder, variant=arguments.variant, compute=Compute(dtype=arguments.dtype)
    )
    names = ("steps", "guidance", "solver", "height", "width", "long", "weights")
    options = {name: getattr(arguments, name) for name in names}
    jobs = [(prompt, arguments.seed + i) for prompt in arguments.prompts for i in range(arguments.n)]
    start, drawn = time.monotonic(), []
    for first in range(0, len(jobs), arguments.chunk):
        here = jobs[first : first + arguments.chunk]
        # The last ones are drawn with others beside them, so that nothing is compiled for a smaller number.
        filled = here + here[:1] * (min(arguments.chunk, len(jobs)) - len(here))
        prompts, seeds = zip(*filled, strict=True)
        negative = None if arguments.negative is None else [arguments.negative] * len(filled)
        drawn += list(pipeline(prompts, seeds=seeds, negative=negative, **options)[: len(here)])
        gone = time.monotonic() - start
        if len(drawn) < len(jobs):
            left = gone / len(drawn) * (len(jobs) - len(drawn))
            print(f"{len(drawn)} of {len(jobs)} pictures, {left:.0f} s left", flush=True)
    seconds = time.monotonic() - start
    for number, image in enumerate(drawn):
        pictures.save(pictures.to_uint8(image), arguments.out / f"{number:05d}.png")
    grid = arguments.out / "grid.png"
    columns = arguments.n if arguments.n > 1 else max(1, round(len(drawn) ** 0.5))
    pictures.save(pictures.tile(np.stack(drawn), columns), grid)
    figures = {"picture": str(grid), "n": len(drawn), "seed": arguments.seed, "seconds": seconds} | options
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"{len(drawn)} pictures in {seconds:.1f} s, compilation included: {grid}")
