"""With verify_determinism an update does not know on how many devices it is made: equal to the bit on 1, 2, 4, 8."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jdiff import cli
from jdiff.models import DiT
from jdiff.parallel import Mesh
from jdiff.train.checkpoint import Checkpoints
from jdiff.train.trainer import assemble
from tests import recipe
from tests.parallel.runs import SIZE, SMALL, run_of, trained

SHALLOW = DiT(patch_size=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=SIZE)
DRAWN = {"stratified_times": True, "dropout": 0.2, "stochastic_depth": 0.2}


def same_on(network, counts, steps, **fields):
    wanted = None
    for count in counts:
        figures, _, state, *_ = trained(run_of(network, Mesh(data=count), verify_determinism=True, **fields), steps)
        assert all(len(leaf.sharding.device_set) == count for leaf in jax.tree.leaves(state))
        got = [figures, *map(np.asarray, jax.tree.leaves(state))]
        wanted = wanted or got
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    return wanted[0]


def test_updates_are_equal_to_the_bit():
    figures = same_on(SMALL, (1, 8), 2, **DRAWN)
    # And they are those of any mesh, up to rounding.
    plain, *_ = trained(run_of(SMALL, Mesh(data=4), **DRAWN), 2)
    np.testing.assert_allclose(figures, plain, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", [SMALL, SHALLOW], ids=["UNet", "DiT"])
def test_they_are_on_four_devices_too_and_in_parts(network):
    same_on(network, (1, 2, 4, 8), 5, accumulate=2, **DRAWN)


@pytest.mark.slow
def test_whole_runs_are_equal_to_the_bit(tmp_path):
    """From the command line: initial parameters, metrics and what the checkpoints hold."""
    written, digests = set(), set()
    for count in (1, 4):
        directory = tmp_path / str(count)
        words = ["--verify-determinism", "--mesh.data", str(count), "--steps", "8", "--sample-every", "100"]
        cli.main(["train", recipe.__file__, *words, "--log-every", "1", "--out", str(directory)])
        assert json.loads((directory / "config.json").read_text())["verify_determinism"] is True
        written.add((directory / "metrics.jsonl").read_bytes())
        with Checkpoints(directory / "checkpoints") as checkpoints:
            digests.add(tuple(checkpoints.about(step)["digest"] for step in (4, 8)))
    assert len(written) == len(digests) == 1


@pytest.mark.parametrize(
    ("mesh", "fields", "message"),
    [
        (Mesh(fsdp=2), {}, "a mesh of data alone, 1, 2, 4 or 8 devices; got data=4 x fsdp=2"),
        (Mesh(data=3), {"batch_size": 24}, "a mesh of data alone, 1, 2, 4 or 8 devices; got data=3"),
        (
            Mesh(data=2),
            {"accumulate": 2, "batch_size": 24},
            "a multiple of 8 virtual shards times accumulate=2; got 24",
        ),
        (Mesh(strategy="pmap"), {}, "verify_determinism: mesh.strategy must be jit, got pmap"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(mesh, fields, message):
    with pytest.raises(ValueError, match=message):
        fields = {"verify_determinism": True, "mesh": mesh, **fields}
        assemble(dataclasses.replace(run_of(SMALL, Mesh()), **fields), 3)
