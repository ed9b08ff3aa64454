"""Attention of tokens that are split over devices is attention: in value and gradient, whatever their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.models import DiT
from jdiff.models.attention import attend
from jdiff.parallel import Mesh, put_batch
from jdiff.train.trainer import assemble
from tests.parallel.runs import SIZE, run_of, start

MESHES = {"context": Mesh(data=1, context=8), "mixed": Mesh(data=2, context=2, tensor=2)}


def tokens(n, m, dtype):
    rng = np.random.default_rng(0)
    draw = lambda length, scale=1.0: (scale * rng.normal(size=(2, length, 4, 8))).astype(np.float32)
    return tuple(jnp.asarray(x, dtype) for x in (draw(n, 4.0), draw(m, 4.0), draw(m)))


def through(q, k, v):
    """Values, and the gradient of a number of them."""
    weigh = lambda *x: jnp.sum(attend(*x) ** 3)
    return attend(q, k, v), *jax.grad(weigh, argnums=(0, 1, 2))(q, k, v)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("n", "m"), [(16, 16), (13, 13), (16, 3)])
def test_a_ring_attends_as_one_device(mesh, n, m):
    """Three keys on eight devices: five of them have none. Logits are up to 60."""
    with jax.enable_x64(True):
        inputs, built = tokens(n, m, jnp.float64), MESHES[mesh].build()
        wanted = jax.jit(through)(*inputs)
        with jax.set_mesh(built):
            compiled = jax.jit(through).lower(*put_batch(built, inputs)).compile()
        got = compiled(*put_batch(built, inputs))
    assert "collective-permute" in compiled.as_text()
    for result, expected in zip(got, wanted, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12 * np.abs(expected).max())


def test_a_ring_sums_in_float32():
    """In bfloat16, what it gives is as near to the truth as what one device gives."""
    inputs, built = tokens(64, 64, jnp.bfloat16), MESHES["context"].build()
    truth = np.asarray(attend(*(x.astype(jnp.float32) for x in inputs)))
    with jax.set_mesh(built):
        ring = np.asarray(jax.jit(attend)(*inputs), np.float32)
    plain = np.asarray(jax.jit(attend)(*inputs), np.float32)
    assert np.abs(ring - truth).max() <= 1.5 * np.abs(plain - truth).max()


def test_a_sampler_on_a_mesh_draws_as_one_device():
    """Through the checks of the samplers, and with the ring in the stages of a pipeline."""
    network = DiT(patch_size=2, num_layers=2, num_attention_heads=2, attention_head_dim=8, sample_size=SIZE)

    def drawn(mesh, params):
        trainer = assemble(run_of(network, mesh), 3)
        params = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, trainer.abstract.params))
        with jax.set_mesh(trainer.mesh):
            return trainer.pipeline(4)(params, seed=0, index=range(4), label=[0, 1, 2, 3])

    params = start(network).params
    wanted = drawn(Mesh(data=1), params)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(drawn(Mesh(pipeline=2, context=2, data=2), params), wanted, atol=3e-6)
