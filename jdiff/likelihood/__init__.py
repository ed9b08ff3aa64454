"""Log-density of any process by its probability-flow ODE (`flow.py`), and bits per dimension of integers
(`dequantization.py`)."""

from jdiff.likelihood.dequantization import (
    Dequantized,
    bits_per_dim,
    dequantize_uniformly,
    dequantize_variationally,
    logit_normal,
)
from jdiff.likelihood.flow import Adaptive, LogDensity, Transport, grid, log_density, probes, transport

__all__ = ["Adaptive", "Dequantized", "LogDensity", "Transport", "bits_per_dim", "dequantize_uniformly"]
__all__ += ["dequantize_variationally", "grid", "log_density", "logit_normal", "probes", "transport"]
