"""How much of a TPU core's peak the compiler's schedule of the attention kernel fills, on a machine without a TPU.

    pip install -e ".[tpu]"
    python experiments/benchmarks/kernel_schedules.py [--json]

libtpu compiles the kernel for a chip and writes down its instructions as the core issues them, one bundle a cycle, with
the empty ones that wait for results. Nothing is run: waiting for main memory is not in it. FLOPs are those of the
products as they stand; a core has four units of 128 x 128 multiply-adds,
from v6e on of 256 x 256.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jdiff.models.fused import one_device

# Chip as a topology, multiply-adds a cycle of a core.
CHIPS = {"v5e:2x2": 4 * 128**2, "v5p:2x2x1": 4 * 128**2, "v6e:2x2": 4 * 256**2, "tpu7x:2x2x1": 4 * 256**2}
# Examples, tokens, heads, width of a head.
SHAPES = {"DiT-XL/2, 256 tokens": (8, 256, 16, 72), "MM-DiT, 1024 + 154 tokens": (8, 1178, 24, 64)}
PRODUCTS = {"forward": 2, "backward": 5}


def compile_one(topology: str, shape: tuple[int, ...]) -> None:
    """Both passes; what the compiler writes of them goes where LIBTPU_INIT_ARGS says."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))

    def both(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple:
        values, back = jax.vjp(one_device, q, k, v)
        return values, back(g)

    jax.jit(both).lower(x, x, x, x).compile()


def bundles(topology: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Cycles of one run of each kernel."""
    with tempfile.TemporaryDirectory() as folder:
        said = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        quiet = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        words = [sys.executable, __file__, "--compile", topology, json.dumps(shape)]
        subprocess.run(words, env=os.environ | quiet | {"LIBTPU_INIT_ARGS": said}, check=True, capture_output=True)
        found = {}
        for name in PRODUCTS:
            (file,) = Path(folder).glob(f"*attention_{name}*schedule-analysis_packed-bundles-post-ra.txt")
            found[name] = int(re.findall(r"total scheduled bundles:\s+(\d+)", file.read_text())[0])
        return found


def main() -> None:
    if sys.argv[1:2] == ["--compile"]:
        compile_one(sys.argv[2], tuple(json.loads(sys.argv[3])))
        return
    rows = []
    for topology, rate in CHIPS.items():
        for shape, (b, n, heads, d) in SHAPES.items():
            # One run takes as many heads as fill whole lanes of 128.
            group = heads if d % 64 else 128 // d
            for name, cycles in bundles(topology, (b, n, heads, d)).items():
                least = PRODUCTS[name] * n * n * d * group / rate
                rows.append(
                    {"chip": topology, "shape": shape, "pass": name, "cycles": cycles, "of_peak": least / cycles}
                )
    if sys.argv[1:] == ["--json"]:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['chip']:10} {row['shape']:26} {row['pass']:9} {row['cycles']:6} cycles  {row['of_peak']:.0%} of peak"
        )


if __name__ == "__main__":
    main()
