"""Weights and settings in the layout of diffusers, in and out. Nothing is ever unpickled."""

from jdiff.interop.tensors import Entry, Tensors, open_tensors, save_tensors

__all__ = ["Entry", "Tensors", "open_tensors", "save_tensors"]
