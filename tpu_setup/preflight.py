"""One host, before a run: a line of JSON, and exit status 1 where something is not as it should be.

EXPECTED_DEVICES and EXPECTED_PLATFORM say what is wanted; any device of any kind unless they are set.
"""

import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

LEAST_DISK = 5e9  # bytes; packages and a checkpoint that is on its way


def seconds(function, *inputs) -> float:
    """Of the fastest of three calls, after one that compiles."""
    jax.block_until_ready(function(*inputs))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    devices = jax.local_devices()
    small = devices[0].platform == "cpu"
    x, size = jnp.ones(2**20 if small else 2**28, jnp.float32), 256 if small else 8192
    a = jnp.ones((size, size), jnp.bfloat16)
    disk, stats = shutil.disk_usage(Path.home()), devices[0].memory_stats() or {}
    figures = {
        "host": socket.gethostname(),
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "memory_bytes": stats.get("bytes_limit"),
        "memory_bytes_a_second": 2 * x.nbytes / seconds(jax.jit(lambda x: x + 1), x),
        "flops_a_second": 2 * size**3 / seconds(jax.jit(lambda a: a @ a), a),
        "time": int(time.time()),
        "disk_free_bytes": disk.free,
    }
    wrong = []
    if len(devices) != int(os.environ.get("EXPECTED_DEVICES", len(devices))):
        wrong.append(f"{len(devices)} devices, not {os.environ['EXPECTED_DEVICES']}")
    if devices[0].platform != os.environ.get("EXPECTED_PLATFORM", devices[0].platform):
        wrong.append(f"devices are {devices[0].platform}, not {os.environ['EXPECTED_PLATFORM']}")
    if disk.free < LEAST_DISK:
        wrong.append(f"{disk.free / 1e9:.1f} GB of disk are free, {LEAST_DISK / 1e9:g} are needed")
    if float((a[:2] @ a)[0, 0]) != size:
        wrong.append("a product of ones is wrong")
    print(json.dumps(figures | {"wrong": wrong}), flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
