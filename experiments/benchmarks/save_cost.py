"""What saving costs the training loop: 100 steps with one save among them, against 100 without, in turns.

    python experiments/benchmarks/save_cost.py [--pairs 2] [--steps 100] [--json]

A DiT whose training state is over 200 MB, through `Trainer` and `Checkpoints` as `jdiff train` uses them: the save
starts after the first step and goes on beside the others. Prints the share that the save adds to the steps (the limit
is 1 %), the seconds for which the loop itself waits, and the size. Run it on an idle machine.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jdiff.experiment import fingerprint, load_recipe
from jdiff.models import DiT
from jdiff.train.checkpoint import Checkpoints
from jdiff.train.keep import Keep
from jdiff.train.trainer import assemble

RECIPE = Path(__file__).parents[1] / "openmoji.py"
LIMIT = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    network = DiT(patch_size=4, num_layers=6, num_attention_heads=6, attention_head_dim=64)
    experiment = dataclasses.replace(load_recipe(RECIPE), network=network, batch_size=32)
    trainer = assemble(experiment, 3)
    state, step = trainer.initial(), trainer.step()
    batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in trainer.abstract_batch.items()}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    waited = []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder), Keep(latest=1)) as checkpoints:
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        checkpoints.save(0, state, fingerprint(experiment))  # what it compiles is compiled
        for number in range(2 * arguments.pairs):
            saves = number % 4 in (1, 2)  # without, with, with, without
            checkpoints.wait()
            start = time.perf_counter()
            for n in range(arguments.steps):
                state, metrics = step(state, batch)
                jax.block_until_ready(metrics)
                if saves and n == 0:
                    begun = time.perf_counter()
                    checkpoints.save(number + 1, state, fingerprint(experiment))
                    waited.append(time.perf_counter() - begun)
            seconds[saves].append(time.perf_counter() - start)
            print(
                f"{arguments.steps} steps {'with' if saves else 'without'} a save: {seconds[saves][-1]:.2f} s",
                flush=True,
            )
    without, with_save = statistics.mean(seconds[False]), statistics.mean(seconds[True])
    figures = {
        "state_megabytes": size / 1e6,
        "ms_a_step": without / arguments.steps * 1e3,
        "share": with_save / without - 1,
        "limit": LIMIT,
        "spread_between_equal_runs": max((max(runs) - min(runs)) / without for runs in seconds.values()),
        "loop_waits_seconds": statistics.mean(waited),
    }
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value:10.4f}")


if __name__ == "__main__":
    main()
