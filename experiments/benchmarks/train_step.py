"""How fast a recipe's training step is on this machine, against its matrix-multiply limit, and where the time goes.

    python experiments/benchmarks/train_step.py experiments/openmoji.py [--json]

Median of 30 steps after 5; FLOPs as XLA counts them before it optimizes; the limit is the best of 10 products of two
1536 x 1536 float32 matrices in the same run; shares are those of a profiler trace of 10 steps, by the name of the XLA
operation that did the work, over the time of all of them. Run it on an idle machine.
"""

import collections
import gzip
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.data import open_source
from jdiff.experiment import load_recipe
from jdiff.train.trainer import assemble

KINDS = {
    "convolution and matrix product": r"conv|dot|gemm|ynn",
    "transpose, copy, concatenation": r"transpose|copy|concatenate|reshape|pad|slice",
    "elementwise, normalization, optimizer, average": r"",
}


def matmul_limit() -> float:
    """GFLOP/s of a large product."""
    side = 1536
    a = jnp.asarray(np.random.default_rng(0).normal(size=(side, side)), jnp.float32)
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:]) / 1e9


def shares(trace: Path, program: str) -> dict[str, float]:
    """Share of the operations' time by kind."""
    (file,) = trace.rglob("*.trace.json.gz")
    operations = set(re.findall(r"%?([\w.\-]+) = ", program))
    spent = collections.Counter()
    for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]:
        name = event.get("name", "")
        if event.get("ph") == "X" and name in operations and not name.startswith(("while", "call")):
            kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, name))
            spent[kind] += event["dur"]
    return {kind: spent[kind] / spent.total() for kind in KINDS}


def main(recipe: Path) -> dict:
    experiment = load_recipe(recipe)
    source = open_source(experiment.data, "train")
    trainer = assemble(experiment, len(source.class_names))
    data = trainer.batches(source, 0)
    batch = next(data)
    state = trainer.initial()
    lowered = trainer.step().lower(state, batch)
    cost = lowered.cost_analysis()
    flops = cost["flops"] if cost else float("nan")
    step = lowered.compile()
    seconds = []
    for _ in range(35):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(10):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
        where = shares(Path(folder), step.as_text())
    start = time.perf_counter()
    for _ in range(100):
        next(data)
    read = (time.perf_counter() - start) / 100
    median = statistics.median(seconds[5:])
    return {
        "ms_a_step": median * 1e3,
        "images_per_second": experiment.batch_size / median,
        "gflops_per_second": flops / median / 1e9,
        "matmul_limit_gflops_per_second": matmul_limit(),
        "ms_to_make_a_batch": read * 1e3,
        "shares": where,
    }


if __name__ == "__main__":
    figures = main(Path(next(word for word in sys.argv[1:] if not word.startswith("-"))))
    if "--json" in sys.argv:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            if name != "shares":
                print(f"{name:32} {value:10.1f}")
        for kind, share in figures["shares"].items():
            print(f"{kind:48} {share:6.1%}")
