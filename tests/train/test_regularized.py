"""Dropout and stochastic depth in training: a function of the seed, the step and the example."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jdiff.models import SongUNet
from jdiff.parallel import Mesh, put_batch
from jdiff.train.loop import train
from jdiff.train.trainer import assemble
from tests.recipe import experiment

SONG = SongUNet(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), channel_mult_emb=1)
RUN = dataclasses.replace(experiment, network=SONG, batch_size=8, dropout=0.3, stochastic_depth=0.3)
SHARES = {"dropout": 0.5, "stochastic_depth": 0.5}


def batch(number):
    rng = np.random.default_rng(number)
    image = rng.normal(size=(8, 8, 8, 3)).astype(np.float32)
    index = rng.permutation(100)[:8].astype(np.uint32)
    return {"image": image, "index": index, "label": (index % 3).astype(np.int32)}


def losses_of(experiment, steps=3, resumed=None):
    """The losses and the state after each step, or of those after a state that was saved."""
    trainer = assemble(experiment, 3)
    step, state, losses, states = trainer.step(), trainer.initial(), [], []
    if resumed is not None:
        state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), resumed, trainer.abstract)
    with jax.set_mesh(trainer.mesh):
        for number in range(int(state.step), steps):
            state, metrics = step(state, put_batch(trainer.mesh, batch(number)))
            losses.append(float(metrics["loss"]))
            states.append(jax.tree.map(np.asarray, state))
    return losses, states


def test_a_resumed_run_leaves_out_the_same():
    losses, states = losses_of(RUN)
    again, resumed = losses_of(RUN, resumed=states[0])
    assert again == losses[1:]
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed[-1], states[-1]))


def test_one_device_and_eight_leave_out_the_same():
    """As another seed would not."""
    eight, one = (losses_of(dataclasses.replace(RUN, mesh=mesh))[0] for mesh in (Mesh(), Mesh(data=1)))
    np.testing.assert_allclose(one, eight, rtol=1e-4)
    other = losses_of(dataclasses.replace(RUN, seed=1))[0]
    assert not np.allclose(other, eight, rtol=1e-2)


@pytest.mark.slow
def test_a_run_with_them_is_not_one_without(tmp_path):
    """Each by itself, through the loop that the command line calls."""
    losses = {}
    for name in (None, *SHARES):
        shares = {} if name is None else {name: SHARES[name]}
        state = train(dataclasses.replace(experiment, **shares), tmp_path / str(name))
        lines = (tmp_path / str(name) / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.ema))
    assert all(np.isfinite(values).all() and len(values) == 12 for values in losses.values())
    for name in SHARES:
        assert not np.allclose(losses[name], losses[None], rtol=1e-3)
    assert not np.allclose(losses["dropout"], losses["stochastic_depth"], rtol=1e-3)


@pytest.mark.parametrize("name", SHARES)
def test_impossible_shares_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), got 1.0"):
        dataclasses.replace(experiment, **{name: 1.0})
