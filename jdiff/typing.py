"""Shape and key aliases. They say what an array means; the docstrings say its shape."""

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
# A typed JAX key (`jax.random.key`), scalar or with a leading axis of one key a sample.
Key = jax.Array
# Process time: a scalar, or one time per example with shape [B]. It grows with noise.
Time = jax.Array | float
# Conditions of a batch: named arrays with a leading batch axis; empty when unconditional.
Cond = dict[str, jax.Array]
# Nested dicts of float32 arrays: a network's parameters.
Params = dict[str, Any]
# (x [B, ...], t, cond) -> Prediction, and the same with its conditions closed over.
Predictor = Callable[[jax.Array, Time, Cond], Any]
Denoiser = Callable[[jax.Array, Time], Any]
