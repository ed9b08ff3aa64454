"""What PyTorch calls each parameter of a network, and how it stores it.

Our modules have the names of diffusers' and transformers' modules, but where those are numbers. What differs:

- `kernel` [in, out] or [H, W, in, out] is `weight` [out, in] or [out, in, H, W]; `scale` and `embedding` are `weight`.
- Under `each`, the parameters of equal blocks are stacked along a first axis; PyTorch has one tensor a block.
- diffusers' DiT holds a copy of the timestep and label embedder in every block; we hold it once.
"""

import re
from typing import NamedTuple

import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# Of every network: our names (with dots around) and theirs.
NAMES = ((r"\.to_out\.", ".to_out.0."), (r"\.widen\.", ".net.0.proj."), (r"\.narrow\.", ".net.2."))
# Of a class: a prefix that is held once here and in every block there.
COPIES = {"DiTTransformer2DModel": ("embedder.", "transformer_blocks.{}.norm1.emb.", "num_layers")}


class Place(NamedTuple):
    """Where the tensors of one parameter are: `keys`, each of `shape`, as PyTorch has it."""

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool  # along axis 0 of ours; otherwise several keys are copies of one
    axes: tuple[int, ...]  # of theirs, in the order of ours

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor with the axes of ours."""
        return tensor.transpose(self.axes)

    def theirs(self, parameter: np.ndarray) -> np.ndarray:
        """The inverse of `ours`."""
        return parameter.transpose(np.argsort(self.axes))


def place(config, path: tuple[str, ...], shape: tuple[int, ...]) -> Place:
    """Where the parameter at a path of the network of `config` is."""
    stacked, count = "each" in path, shape[0] if "each" in path else 1
    shape = shape[1:] if stacked else shape
    *parents, leaf = path
    axes = tuple(range(len(shape)))
    if leaf == "kernel":
        # Ours are theirs, moved: out to the end, in before it.
        axes = (*axes[2:], 1, 0)
    name = ".".join(("", *parents, LEAVES.get(leaf, leaf)))
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    name = name[1:]
    keys = tuple(name.replace(".each.", f".{i}.") for i in range(count)) if stacked else _copies(config, name)
    their_shape = [0] * len(shape)
    for position, axis in enumerate(axes):
        their_shape[axis] = shape[position]
    return Place(keys, tuple(their_shape), stacked, axes)


def _copies(config, name: str) -> tuple[str, ...]:
    if config.published not in COPIES:
        return (name,)
    prefix, everywhere, field = COPIES[config.published]
    if not name.startswith(prefix):
        return (name,)
    return tuple(everywhere.format(i) + name.removeprefix(prefix) for i in range(getattr(config, field)))
