"""A mesh draws what one device draws, each slice of it its own part."""

import jax
import numpy as np
import pytest

from jdiff.parallel import Mesh
from jdiff.plan.statistics import statistics
from jdiff.train.trainer import assemble
from tests.parallel.runs import SIZE, run_of, start
from tests.parallel.test_training import ALL, MESHES, MIXED

TESTED = [("DiT", mesh) for mesh in MESHES] + [("UNet", "fsdp"), ("UNet", MIXED), ("JiT", MIXED)]


def drawn(name, mesh, devices=None, **given):
    """A trainer's pipeline on a mesh, and parameters there that are not those of an identity."""
    trainer = assemble(run_of(ALL[name], mesh), 3, devices)
    put = lambda leaf, like: jax.make_array_from_callback(leaf.shape, like.sharding, lambda index: leaf[index])
    params = jax.tree.map(put, start(ALL[name]).params, trainer.abstract.params)
    pipeline = trainer.pipeline(5, steps=3, guidance=2.0)
    return pipeline, params


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), TESTED, ids=[" on ".join(pair) for pair in TESTED])
def test_a_mesh_draws_what_one_device_draws(name, mesh):
    asked = {"seed": 3, "index": range(7), "label": np.arange(7) % 3}
    alone, params = drawn(name, Mesh(data=1), jax.devices()[:1])
    expected = alone(params, **asked)
    pipeline, params = drawn(name, MESHES[mesh])
    np.testing.assert_allclose(pipeline(params, **asked), expected, atol=1e-4)
    slices = pipeline.mesh.shape["data"] * pipeline.mesh.shape["fsdp"]
    assert alone.chunk == 5 and pipeline.chunk == -(-5 // slices) * slices


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["dp", "fsdp"])
def test_each_device_draws_its_part(mesh):
    """Five are asked for and eight drawn, one on each device, which sends less than an image."""
    alone, params = drawn("DiT", Mesh(data=1), jax.devices()[:1])
    pipeline, there = drawn("DiT", MESHES[mesh])
    figures = [statistics(one.compile().as_text()) for one in (alone.lower(params), pipeline.lower(there))]
    assert sum(figures[1].sent().values()) < SIZE * SIZE * 3 * 4
    assert pipeline.chunk == 8 and figures[1].flops == pytest.approx(figures[0].flops / 5, rel=0.05)
