"""Weights and settings in the layout of diffusers, in and out. Nothing is ever unpickled."""

from jdiff.interop.configs import read_config
from jdiff.interop.pretrained import Pretrained, from_pretrained, save_pretrained
from jdiff.interop.single_file import from_single_file
from jdiff.interop.tensors import Entry, Tensors, open_tensors, save_tensors

__all__ = ["Entry", "Pretrained", "Tensors", "from_pretrained", "from_single_file", "open_tensors", "read_config"]
__all__ += ["save_pretrained", "save_tensors"]
