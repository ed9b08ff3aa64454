"""Small networks that all axes of a mesh can split, and a few updates of each from parameters that are not zero."""

import dataclasses
import functools
import zlib

import jax
import numpy as np
import optax

from jdiff.models import DhariwalUNet, DiT, JiT, SongUNet, UNet
from jdiff.parallel import Mesh, put_batch
from jdiff.train.trainer import assemble
from tests.recipe import experiment

SIZE, ROWS = 8, 16
TRANSFORMERS = {
    "DiT": DiT(patch_size=2, num_layers=4, num_attention_heads=4, attention_head_dim=32, sample_size=SIZE),
    "JiT": JiT(
        patch_size=2,
        bottleneck=16,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=32,
        context_tokens=3,
        context_start=2,
    ),
}
UNETS = {
    "UNet": UNet(channels=64, multipliers=(1, 1), blocks=(1, 1), attention=(1,), heads=4, patch=1),
    "SongUNet": SongUNet(model_channels=64, channel_mult=(1,), num_blocks=1, attn_resolutions=(8,)),
    "DhariwalUNet": DhariwalUNet(model_channels=64, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,)),
}
SMALL = UNet(channels=8, multipliers=(1,), blocks=(1,), attention=(), patch=2)


def run_of(network, mesh, **fields):
    """An experiment of the smallest recipe with that network and mesh."""
    data = dataclasses.replace(experiment.data, size=SIZE)
    return dataclasses.replace(experiment, network=network, mesh=mesh, data=data, batch_size=ROWS, **fields)


def batch(number):
    rng = np.random.default_rng(number)
    image = rng.uniform(-1, 1, (ROWS, SIZE, SIZE, 3)).astype(np.float32)
    index = rng.permutation(100)[:ROWS].astype(np.uint32)
    return {"image": image, "index": index, "label": (index % 3).astype(np.int32)}


def moved(path, leaf):
    """An array, each number moved by chance: networks start as the identity, which says nothing of their blocks."""
    rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
    return np.asarray(leaf) + 0.05 * rng.normal(size=leaf.shape).astype(np.float32)


@functools.cache
def start(network):
    """The state before the first update, on the host."""
    trainer = assemble(run_of(network, Mesh(data=1)), 3, jax.devices()[:1])
    state = jax.tree.map(np.asarray, trainer.initial())
    return state._replace(params=jax.tree_util.tree_map_with_path(moved, state.params))


def trained(experiment, steps=3, devices=None):
    """Losses and norms of the gradient [steps, 2], the first gradient, the state at the end, the trainer, the step."""
    trainer = assemble(experiment, 3, devices)
    step = trainer.step()
    put = lambda leaf, like: jax.make_array_from_callback(leaf.shape, like.sharding, lambda index: leaf[index])
    state = jax.tree.map(put, start(experiment.network), trainer.abstract)
    figures, gradient = [], None
    for number in range(steps):
        state, metrics = step(state, put_batch(trainer.mesh, batch(number)))
        figures.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        if gradient is None:
            gradient = jax.tree.map(np.asarray, optax.tree.get(state.opt_state, "mu"))
    return np.array(figures), gradient, state, trainer, step


def difference(tree, other):
    """The greatest of the arrays' differences, as a share of the norm of all of `other`."""
    norm = optax.tree.norm(other)
    return max(float(np.linalg.norm(a - b) / norm) for a, b in zip(*map(jax.tree.leaves, (tree, other)), strict=True))
