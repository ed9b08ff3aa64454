"""Weights and settings in the layout of diffusers, in and out. Nothing is ever unpickled."""

from jdiff.interop.pretrained import Pretrained, from_pretrained, read_config, save_pretrained
from jdiff.interop.tensors import Entry, Tensors, open_tensors, save_tensors

__all__ = ["Entry", "Pretrained", "Tensors", "from_pretrained", "open_tensors", "read_config", "save_pretrained"]
__all__ += ["save_tensors"]
