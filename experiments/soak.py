"""Kills a run again and again, at moments of every kind, and compares how it ends with a run that was left alone.

    python experiments/soak.py [--kills 100] [--seed 0] [--json]

The kinds take turns: while a new process starts and compiles (`compile`), between two steps (`step`), while a
checkpoint is being written (`save`), when it has just become visible (`finalize`), and while an old one is removed
(`remove`). For the last three the run's folder is watched, and the kill comes up to 20 ms after what is waited for.
SIGKILL each time. Says how many kills of each kind there were, and whether parameters, averages, optimizer, metrics and
pictures are the same to the bit; the exit status is 1 where they are not. About ten seconds a kill on two cores.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jdiff.train.restore import open_run

ROOT = Path(__file__).parent.parent
KINDS = ("compile", "step", "save", "finalize", "remove")
EVERY = 20
"""Steps between checkpoints."""
AHEAD = 90
"""Steps that the run has to have for each kill, so that it does not end before the last one."""


class Life:
    """One process of the run, from its start to its kill."""

    def __init__(self, directory: Path, steps: int):
        self.directory = directory
        words = ["train", str(ROOT / "tests" / "recipe.py"), "--out", str(directory), "--steps", str(steps)]
        words += ["--checkpoint-every", str(EVERY), "--sample-every", "100000"]
        self.log = directory.with_suffix(".log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from jdiff.cli import main; main()", *words],
                env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
                stdout=log,
                stderr=log,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def until(self, happened, longest: float = 120.0) -> None:
        """Returns when something has happened. Raises RuntimeError where the process ends first, or after `longest`."""
        end = time.monotonic() + longest
        while not happened():
            if self.process.poll() is not None:
                said = self.log.read_text()[-2000:]
                raise RuntimeError(f"the process ended by itself, with status {self.process.returncode}: {said}")
            if time.monotonic() > end:
                raise RuntimeError(f"nothing to kill at in {longest:.0f} s")
            time.sleep(0.0005)

    def names(self) -> set[str]:
        """What lies among the checkpoints."""
        try:
            return set(os.listdir(self.directory / "checkpoints"))
        except FileNotFoundError:
            return set()

    def size(self) -> int:
        """Of the metrics."""
        path = self.directory / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def kill(self, kind: str, rng: random.Random) -> None:
        """Kills it at a moment of this kind."""
        if kind == "compile":
            time.sleep(rng.uniform(2.0, 8.0))
        else:
            begun = self.size()
            self.until(lambda: self.size() > begun)  # it makes steps
        if kind == "step":
            begun = self.size()
            self.until(lambda: self.size() > begun)
            time.sleep(rng.uniform(0.0, 0.05))
        elif kind == "save":
            self.until(lambda: any("tmp" in name for name in self.names()))
            time.sleep(rng.uniform(0.0, 0.02))
        elif kind == "finalize":
            before = {name for name in self.names() if name.isdigit()}
            self.until(lambda: any(name.isdigit() and name not in before for name in self.names()))
            time.sleep(rng.choice((0.0, rng.uniform(0.0, 0.005))))
        elif kind == "remove":
            self.until(lambda: any(name.endswith(".removed") for name in self.names()))
            time.sleep(rng.uniform(0.0, 0.02))
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Lets it come to its end."""
        status = self.process.wait()
        if status:
            raise RuntimeError(f"the run ended with status {status}: {self.log.read_text()[-2000:]}")


def different(one: Path, other: Path) -> list[str]:
    """What is not the same to the bit in two finished runs."""
    states = [open_run(directory).state() for directory in (one, other)]
    leaves = zip(jax.tree_util.tree_leaves_with_path(states[0]), jax.tree.leaves(states[1]), strict=True)
    found = [jax.tree_util.keystr(path) for (path, a), b in leaves if not np.array_equal(a, b)]
    names = ("metrics.jsonl", "samples.png", "trajectory.png", "nearest.png")
    return found + [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rng, counts, start = random.Random(arguments.seed), collections.Counter(), time.monotonic()
    steps = max(200, arguments.kills * AHEAD)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        for number in range(arguments.kills):
            kind = KINDS[number % len(KINDS)]
            with Life(killed, steps) as life:
                life.kill(kind, rng)
            counts[kind] += 1
            lines = (killed / "metrics.jsonl").read_text().splitlines() if (killed / "metrics.jsonl").exists() else []
            left = (time.monotonic() - start) / (number + 1) * (arguments.kills - number - 1)
            print(
                f"kill {number + 1}/{arguments.kills} ({kind}), after line {len(lines)}  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
        for directory in (killed, whole):
            with Life(directory, steps) as life:
                life.end()
        wrong = different(whole, killed)
    figures = {"kills": dict(counts), "steps": steps, "different": wrong, "seconds": time.monotonic() - start}
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"{arguments.kills} kills ({', '.join(f'{k} {n}' for k, n in counts.items())}) over {steps} steps")
        print(f"different: {', '.join(wrong) or 'nothing, to the bit'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
