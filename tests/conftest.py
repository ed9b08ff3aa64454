"""Eight fake devices and a compilation cache for the whole suite; float64 with strict promotion for the maths."""

import os
from pathlib import Path

import jax
import pytest

CACHE = Path(__file__).parent.parent / ".jax_cache"
os.environ.setdefault("MPLBACKEND", "agg")
# The older emitters compile a network's gradient in less than half the time; newer versions no longer have them, and
# end the process for a flag that they do not know.
if jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
# Read by the processes that tests start, too. An empty value means that a cache was not asked for.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(CACHE)
LEAST = os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", float(LEAST))
jax.config.update("jax_num_cpu_devices", 8)
# What the tests compute is small, and compiling it is what takes time; here and in the processes that tests start.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    """float64, and no promotion that the code did not ask for."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield
