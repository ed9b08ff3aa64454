"""`jdiff replay BUNDLE`: makes the update that a run gave up at once more."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from jdiff.cli.arguments import parse
from jdiff.train.paths import Moved
from jdiff.train.replay import replay
from jdiff.train.restore import open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """What `jdiff replay` takes."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """What a run has left in its replay/ folder."""
    data: Moved = dataclasses.field(default_factory=Moved)
    json: bool = False
    """Print as JSON."""


def main(words: list[str]) -> None:
    arguments = parse(Replay, words, prog="jdiff replay", description=__doc__ or "")
    found = replay(open_run(arguments.bundle, arguments.data))
    if arguments.json:
        print(json.dumps(found))
        return
    then, now = found["then"], found["now"]
    print(f"step {found['step']}, examples {found['index'][0]} to {found['index'][-1]}")
    print(f"then: loss {then['loss']:g}, norm of the gradient {then['grad_norm']:g}")
    print(f"now:  loss {now['loss']:g}, norm of the gradient {now['grad_norm']:g}")
    print("the same to the bit" if found["same"] else "not the same: the machine was at fault, or is another one")
