"""A stack whose blocks lie on several devices computes what it computes on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jdiff.models import Compute, Regularization, functional
from jdiff.models.compute import Stack
from jdiff.parallel import Mesh, put_batch, state_sharding

ROWS, WIDTH = 8, 16


class Block(nnx.Module):
    """Uses all that a block may be given: a second array that changes, rows, and what is the same for all rows."""

    def __init__(self, *, rngs):
        self.layer = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, state, added, same, regularization):
        x, block = state
        step = jnp.tanh(self.layer(x)) * (1 + block) + added[:, None] + same[: x.shape[1], None]
        return x + regularization.branch(step, block, 4, 0), block + 1


def stack(**compute):
    return functional(lambda rngs: Stack(lambda rngs: Block(rngs=rngs), 4, Compute(**compute), rngs=rngs))


def run(network, params, rows):
    """The sum of squares of the result and the number that was counted, for gradients."""
    x, added, keys = rows
    # As long as the batch, and not of it: a NumPy array is the same for all rows.
    same = np.linspace(0, 1, ROWS).astype(np.float32)
    regularization = Regularization(keys=jax.random.wrap_key_data(keys), dropout=0.3, depth=0.3)
    out, count = network.apply(params, (x, jnp.int32(0)), added, same, regularization)
    return (out**2).mean(), (out, count)


def rows(count=ROWS):
    rng = np.random.default_rng(1)
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(3), count)))
    return (
        rng.normal(size=(count, 5, WIDTH)).astype(np.float32),
        rng.normal(size=(count, WIDTH)).astype(np.float32),
        keys,
    )


@pytest.mark.parametrize("compute", [{}, {"scan": False}, {"remat": "full"}], ids=str)
@pytest.mark.parametrize("mesh", [Mesh(data=1, pipeline=4), Mesh(data=4, pipeline=2)], ids=["4", "4 x 2"])
def test_a_pipeline_computes_as_one_device(mesh, compute):
    network, plain = stack(**compute), stack()
    params = plain.init(jax.random.key(0))
    graded = lambda network: jax.jit(jax.value_and_grad(lambda p, r: run(network, p, r), has_aux=True))
    (_, (wanted, count)), slope = graded(plain)(params, rows())
    built = mesh.build()
    with jax.set_mesh(built):
        placed = jax.device_put(params, state_sharding(built, params))
        (_, (got, counted)), gradient = graded(network)(placed, put_batch(built, rows()))
    assert placed["each"]["layer"]["kernel"].sharding.spec[0] == "pipeline"
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-5)
    assert counted == count == 4
    for leaf, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(slope), strict=True):
        assert np.abs(leaf - other).max() <= 1e-5 * np.abs(other).max()  # measured: 4e-6


def test_a_batch_that_cannot_be_cut_passes_whole():
    """As when a few pictures are drawn on the mesh of a run."""
    network = stack()
    params, few = network.init(jax.random.key(0)), rows(1)
    with jax.set_mesh(Mesh(data=4, pipeline=2).build()):
        got = jax.jit(lambda *a: run(network, *a))(params, few)[0]
    np.testing.assert_allclose(got, run(network, params, few)[0], rtol=1e-5)
