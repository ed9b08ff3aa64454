"""What the sampling loop costs beside the network: wall time of the jitted loop over NFE times the jitted network.

    python experiments/benchmarks/loop_overhead.py [--json]

Two U-Nets on this machine, a small one and one of the size of the first recipe; 20 evaluations over a Karras grid, with
the checks of `samplers.checked`. Every loop is timed between as many calls of the network alone, half of them before it
and half after, round after round, and the median over rounds of the ratio is printed, so that a machine whose speed
drifts does not decide, and one that is held up at times holds up both. The limit is 1: nothing but the network. Run it
on an idle machine.
"""

import json
import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp

from jdiff import guidance, rng
from jdiff.models import UNet, build
from jdiff.prediction import EDMPreconditioning, predictor
from jdiff.processes import EDM
from jdiff.samplers import SOLVERS, checked, karras, sample

EVALUATIONS, ROUNDS, SIZE = 20, 21, 32
NETWORKS = {
    "small": (UNet(channels=16, multipliers=(1, 2), blocks=(1, 1), attention=()), 4),
    "middling": (UNet(channels=64), 16),
}
LOOPS = ("ddim", "dpmpp_2m", "dpmpp_3m", "ddpm", "heun")


def seconds(run, calls=1) -> float:
    """Of so many calls, each of whose results is waited for."""
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(config: UNet, batch: int) -> dict:
    """Milliseconds of the network, and each loop's time over its evaluations of the network."""
    network, process = build(config, size=SIZE, channels=3, out_channels=3, num_classes=0), EDM()
    params = network.init(jax.random.key(0))
    x, label = jnp.ones((batch, SIZE, SIZE, 3)), jnp.zeros(batch)
    apply = jax.jit(lambda params, x, label: network.apply(params, x, label, {}))
    keys = rng.per_example(jax.random.key(0), jnp.arange(batch))

    def loop(solver):
        @checked
        def draw(params, keys, grid):
            predict = predictor(partial(network.apply, params), process, EDMPreconditioning())
            return sample(keys, guidance.unguided(predict, {}), process, solver, grid, x.shape[1:])

        return draw

    runs = {"network": lambda: apply(params, x, label)}
    counts = {}
    for name in LOOPS:
        steps = (EVALUATIONS - 1) // SOLVERS[name].nfe_per_step
        counts[name] = SOLVERS[name].nfe(steps) + 1
        runs[name] = partial(loop(SOLVERS[name]), params, keys, karras(process, steps + 1))
    for run in runs.values():
        jax.block_until_ready(run())
    ratios, networks = {name: [] for name in LOOPS}, []
    for _ in range(ROUNDS):
        for name in LOOPS:
            before = counts[name] // 2
            alone_before = seconds(runs["network"], before)
            whole = seconds(runs[name])
            alone = alone_before + seconds(runs["network"], counts[name] - before)
            networks.append(alone / counts[name])
            ratios[name].append(whole / alone)
    return {
        "batch": batch,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "network_ms": statistics.median(networks) * 1e3,
        "evaluations": counts,
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "quartiles": {name: statistics.quantiles(values, n=4)[::2] for name, values in ratios.items()},
    }


if __name__ == "__main__":
    figures = {name: measure(*network) for name, network in NETWORKS.items()}
    if "--json" in sys.argv:
        print(json.dumps(figures))
        sys.exit()
    for name, figure in figures.items():
        print(f"{name}: {figure['parameters']:,} parameters, batch {figure['batch']}, {figure['network_ms']:.2f} ms")
        for loop, ratio in figure["ratio"].items():
            low, high = figure["quartiles"][loop]
            count = figure["evaluations"][loop]
            print(f"  {loop:10} {count} evaluations: {ratio:.3f} (quartiles {low:.3f}, {high:.3f})")
