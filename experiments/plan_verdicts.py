"""Whether a step fits, by the estimate that `jdiff plan --search` goes by, and by the compiler.

    python experiments/plan_verdicts.py
    python experiments/plan_verdicts.py DiT-XL/2 --json cells.json

Every cell of networks x chips x rematerializations x meshes x batches below, taken from the candidates of a search,
none left out. Needs the extra `tpu`; no TPU. What was compiled is kept in `--cache`; each cell takes a core a minute.
"""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

from jdiff.experiment import Experiment, load_recipe
from jdiff.plan.compiled import default_cache
from jdiff.plan.report import Economy, make
from jdiff.plan.search import REMATS, candidates, estimated
from jdiff.plan.topology import parse

HERE = Path(__file__).parent
# Of what the pod recipes train, beside their own network.
NETWORKS = {
    "DiT-XL/2": ("pod_dit_xl2", {}),
    "DiT-B/2": ("pod_dit_xl2", {"num_layers": 12, "num_attention_heads": 12, "attention_head_dim": 64}),
    "DiT-L/2": ("pod_dit_xl2", {"num_layers": 24, "attention_head_dim": 64}),
    "MM-DiT": ("pod_mmdit", {}),
}
# Network, topology, sizes of `fsdp`, examples a chip.
GRID = [
    ("DiT-XL/2", "v5e:4x4", (1, 16), (4, 8, 16, 32, 64)),
    ("DiT-XL/2", "v6e:2x2", (4,), (16, 32, 64)),
    ("DiT-B/2", "v5e:2x2", (1,), (32, 64)),
    ("MM-DiT", "v5p:2x2x2", (8,), (4, 8, 16, 32)),
    ("MM-DiT", "v4:2x2x4", (16,), (2, 4, 8)),
    ("DiT-L/2", "v5e:2x2", (2,), (16, 32, 64)),  # not among those that the estimate was fitted to
]
GIB = 2**30


def recipe(name: str) -> Experiment:
    file, fields = NETWORKS[name]
    experiment = load_recipe(HERE / f"{file}.py")
    network = dataclasses.replace(experiment.network, **fields)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(experiment, network=network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; all unless named")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where compiled figures are kept")
    parser.add_argument("--json", type=Path, help="file to write the cells to")
    words = parser.parse_args()
    if unknown := set(words.networks) - set(NETWORKS):
        parser.error(f"{', '.join(sorted(unknown))}: not of {', '.join(NETWORKS)}")
    economy, cells = Economy(images=1e9), []
    print("| network | topology | fsdp | remat | a chip | estimate, GiB | compiler, GiB | there | verdicts |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, where, counts, batches in GRID:
        if words.networks and name not in words.networks:
            continue
        topology = parse(where)
        tried = estimated(candidates(recipe(name), topology), topology, classes=0, economy=economy)
        for fsdp, remat, each in itertools.product(counts, REMATS, batches):
            (found,) = [
                pair
                for pair in tried
                if (pair.plan.remat, pair.experiment.mesh.fsdp, pair.plan.batch) == (remat, fsdp, each * topology.size)
            ]
            guess = found.plan
            said = make(found.experiment, topology, classes=0, economy=economy, cache=words.cache)
            cells.append(
                {
                    "network": name, "topology": where, "fsdp": fsdp, "remat": remat, "examples": each,
                    "estimate": guess.needed, "compiler": said.needed, "available": guess.available,
                    "fits_estimate": guess.fits, "fits": said.fits,
                }
            )  # fmt: skip
            verdict = "fits" if said.fits else "too large"
            verdict = f"both {verdict}" if guess.fits == said.fits else f"compiler {verdict}, estimate not"
            print(
                f"| {name} | {where} | {fsdp} | {remat} | {each} | {guess.needed / GIB:.1f} | {said.needed / GIB:.1f} "
                f"| {guess.available / GIB:.1f} | {verdict} |",
                flush=True,
            )
    agree = sum(cell["fits"] == cell["fits_estimate"] for cell in cells)
    print(f"\n{agree} of {len(cells)} verdicts agree")
    if words.json is not None:
        words.json.write_text(json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
