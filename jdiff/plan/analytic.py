"""What a step needs, from closed formulas of the network: nothing is traced or compiled.

FLOPs of products of matrices, 2 for a multiply-add. With N tokens of width D, a block of a transformer takes 24 N D^2
for its weights, 4 N^2 D for its attention and, once an image, what its modulation takes. A step of training takes three
times a forward pass (Kaplan et al., 2001.08361, section 2.1); what rematerialization computes again is work of the
hardware and not of the model, and MFU is of the model's (Chowdhery et al., 2204.02311, appendix B).
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractDevice

from jdiff.experiment import Experiment
from jdiff.models import DiT, FullAttention, MMDiT
from jdiff.models.attention import kernel
from jdiff.models.fused import fits
from jdiff.plan.chips import Chip
from jdiff.plan.tiles import tiled_bytes
from jdiff.train.trainer import Trainer


@dataclass(frozen=True)
class Work:
    """FLOPs of one example's forward pass."""

    blocks: float
    """In the blocks that rematerialization computes again, their attention left out."""
    attention: float
    """Products of queries, keys and values."""
    rest: float

    @property
    def forward(self) -> float:
        """All of it."""
        return self.blocks + self.attention + self.rest

    @property
    def model(self) -> float:
        """Of a step of training."""
        return 3 * self.forward

    def hardware(self, remat: str, fused: bool) -> float:
        """Of a step of training, with what is computed again; a fused kernel of attention computes the logits again on
        its way back, and itself where anything is computed again: it is none of the products that policies keep."""
        plain = {"none": 0, "dots": 0, "dots_with_no_batch_dims": 1, "offload_dots": 1, "full": 1}[remat]
        attending = (1.5 if remat != "none" else 0.5) if fused else plain
        return self.model + (self.blocks if remat == "full" else 0.0) + attending * self.attention


def work(experiment: Experiment) -> Work | None:
    """Of the experiment's network; None where there is no closed formula for it here."""
    network, data = experiment.network, experiment.data
    out = experiment.parameterization.out_channels(data.channels)
    if isinstance(network, DiT) and isinstance(network.attention, FullAttention):
        return _dit(network, data.size, data.channels, out)
    if isinstance(network, MMDiT):
        return _mmdit(network, data.size, data.channels, out, getattr(data, "tokens", 0))
    return None


def _dit(network: DiT, size: int, channels: int, out: int) -> Work:
    n, d, depth, patch = (size // network.patch_size) ** 2, network.width, network.num_layers, network.patch_size**2
    blocks = depth * (24 * n * d**2 + 12 * d**2)
    rest = 2 * (256 * d + d**2) + 4 * d**2 + 2 * n * patch * d * (channels + out)
    return Work(blocks, depth * 4 * n**2 * d, rest)


def _mmdit(network: MMDiT, size: int, channels: int, out: int, m: int) -> Work:
    n, d, patch = (size // network.patch_size) ** 2, network.width, network.patch_size**2
    dual = len(network.dual_attention_layers)
    blocks = network.num_layers * (24 * (n + m) * d**2 + 24 * d**2) + dual * (8 * n * d**2 + 6 * d**2)
    # The last block gives no text: neither its projection nor its two layers, and two of its six modulations.
    blocks -= 18 * m * d**2 + 8 * d**2
    attention = 4 * d * (network.num_layers * (n + m) ** 2 + dual * n**2)
    embeddings = 256 * d + network.pooled_projection_dim * d + 2 * d**2 + m * network.joint_attention_dim * d
    return Work(blocks, attention, 2 * embeddings + 4 * d**2 + 2 * n * patch * d * (channels + out))


def fused(trainer: Trainer, chip: Chip) -> bool:
    """Whether the network's attention, all tokens to all, is one kernel on these chips, which need not be there."""
    network, data = trainer.experiment.network, trainer.experiment.data
    if not isinstance(network, DiT | MMDiT) or (
        isinstance(network, DiT) and not isinstance(network.attention, FullAttention)
    ):
        return False
    tokens = (data.size // network.patch_size) ** 2 + (getattr(data, "tokens", 0) if isinstance(network, MMDiT) else 0)
    if chip.platform == "cuda":
        return kernel("gpu", network.compute.dtype, network.attention_head_dim) == "cudnn"
    shape = trainer.experiment.batch_size, tokens, network.num_attention_heads, network.attention_head_dim
    heads = jax.ShapeDtypeStruct(shape, network.compute.dtype)
    device = AbstractDevice(device_kind=f"TPU {chip.name}", num_cores=None, platform=chip.platform)
    with jax.sharding.use_abstract_mesh(trainer.mesh.abstract_mesh.update(abstract_device=device)):
        return fits(heads, heads)


def shard_bytes(tree: Any, size: Callable[[tuple[int, ...], Any], int] | None = None) -> int:
    """Bytes that one device holds of arrays with shardings; `size` says those of an array of a shape and dtype, where
    they are more than its numbers."""
    of = size or (lambda shape, dtype: math.prod(shape) * dtype.itemsize)
    return sum(of(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree))


def held(tree: Any, platform: str) -> int:
    """Bytes that one device of a platform holds of arrays with shardings."""
    return shard_bytes(tree, tiled_bytes if platform == "tpu" else None)


def arguments(trainer: Trainer, platform: str) -> dict[str, int]:
    """Bytes on one device of a platform, of what a step is given, by class."""
    state = trainer.abstract
    parts = {
        "parameters": state.params,
        "average": (state.ema, state.profiles),
        "optimizer": state.opt_state,
        "other": (state.step, state.key, state.skipped),
        "batch": trainer.abstract_batch,
    }
    return {name: held(part, platform) for name, part in parts.items()}


def temporary(trainer: Trainer, chip: Chip) -> float | None:
    """An estimate of the bytes that a step needs besides its arguments: gradients, parameters in the dtype of
    activations, what blocks keep for the backward pass, and what one block works in. None where the network has no
    closed formula. The factors are fitted to what the compiler says (experiments/plan_verdicts.py)."""
    experiment = trainer.experiment
    if work(experiment) is None or not isinstance(experiment.network, DiT | MMDiT):
        return None
    network, data = experiment.network, experiment.data
    wide = np.dtype("float32").itemsize
    narrow = 2 if network.compute.dtype != "float32" else wide
    tokens = (data.size // network.patch_size) ** 2 + getattr(data, "tokens", 0)
    rows = math.ceil(experiment.batch_size / (trainer.mesh.shape["data"] * trainer.mesh.shape["fsdp"]))
    token = network.width * narrow
    # Of attention, a token: its logits and what becomes of the values, which its kernel does not keep.
    weights, mixed = (0, 0) if fused(trainer, chip) else (tokens * network.num_attention_heads, 2 * token)
    kept = {
        "none": 42 * token + mixed + weights * (wide + narrow),
        "dots": 10 * token + mixed + weights * wide,
        "dots_with_no_batch_dims": 10 * token,
        "full": token,
        "offload_dots": token,
    }[network.compute.remat]
    working = 20 * token + 2 * weights * wide
    parameters = shard_bytes(trainer.abstract.params)
    return parameters * (1 + narrow / wide) + rows * tokens * (network.num_layers * kept + working)


def sent(trainer: Trainer) -> dict[str, float]:
    """Bytes that one device sends in a step, by kind of collective, in a ring: parameters that `fsdp` splits are
    gathered forward and backward, and once more with full rematerialization of the blocks, in the dtype of activations;
    their gradients are summed and split; those of all parameters are summed over `data`."""
    experiment, shape = trainer.experiment, trainer.mesh.shape
    compute = getattr(experiment.network, "compute", None)
    narrow = 2 if compute is not None and compute.dtype != "float32" else 4
    whole = split = 0.0
    for leaf in jax.tree.leaves(trainer.abstract.params):
        part = math.prod(leaf.sharding.shard_shape(leaf.shape)) < leaf.size
        split, whole = (split + leaf.size, whole) if part else (split, whole + leaf.size)
    x, copies = shape["fsdp"], shape["data"]
    gathers = 3 if compute is not None and compute.remat == "full" else 2
    ring = lambda count: (count - 1) / count
    return {
        "all-gather": gathers * split * narrow * ring(x),
        "reduce-scatter": split * narrow * ring(x),
        "all-reduce": 2 * narrow * (split / x * ring(copies) + whole * ring(x * copies)),
    }


def with_remat(experiment: Experiment, remat: str) -> Experiment:
    """The experiment, computing with another rematerialization."""
    compute = dataclasses.replace(experiment.network.compute, remat=remat)  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.replace(experiment, network=dataclasses.replace(experiment.network, compute=compute))
