"""Diffusion models in JAX: processes, predictions, solvers, and everything needed to train and sample with them."""

__version__ = "0.1.0"
