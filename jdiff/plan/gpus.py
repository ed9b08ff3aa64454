"""GPUs that are described and not there, for XLA's compiler for GPUs, whose part that compiles runs without one.

A description is XLA's `GpuTargetConfig` as text. Its figures are NVIDIA's: the data sheets of H100 SXM and H200 SXM,
and what the CUDA programming guide says of compute capability 9.0.
"""

import importlib.util
from typing import Any

from jax.experimental import topologies

from jdiff.plan.chips import Chip

OPTIONS = {"xla_gpu_autotune_level": "0"}
"""What to compile with: without this, XLA would try its kernels out on a GPU."""
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: 9 minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 }}
"""


def installed() -> bool:
    """Whether the compiler is."""
    return any(importlib.util.find_spec(f"jax_cuda{major}_plugin") for major in (12, 13))


def devices(chip: Chip, hosts: int, each: int) -> list[Any]:
    """The GPUs of some hosts with `each` in one, those of a host side by side."""
    described = _HOPPER.format(bandwidth=chip.bandwidth, memory=chip.hbm)
    # One slice: hosts that JAX reaches by one network.
    found = topologies.get_topology_desc(platform="cuda", target_config=described, topology=f"1x{hosts}x{each}")
    return list(found.devices)
