"""Dropout and stochastic depth: means stay, shares are those asked for, and each example is its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.models import Compute, DiT, Regularization, build
from jdiff.models.regularize import dropout, stochastic_depth
from tests.models.draws import drawn

N = 20000
KEYS = jax.random.split(jax.random.key(0), N)
RATE = 0.3
LIMIT = 5 * np.sqrt(RATE * (1 - RATE) / N)  # five standard deviations of a share


@pytest.mark.parametrize("leave_out, together", [(dropout, False), (stochastic_depth, True)])
def test_a_share_is_left_out_and_means_stay(leave_out, together):
    x = jnp.array([1.0, -2.0, 3.0])
    y = np.asarray(leave_out(KEYS, jnp.broadcast_to(x, (N, 3)), RATE))
    gone = y == 0
    np.testing.assert_allclose(y, np.where(gone, 0, np.asarray(x) / (1 - RATE)), rtol=1e-6)
    assert np.abs(gone.mean(axis=0) - RATE).max() < LIMIT
    both = (gone[:, 0] & gone[:, 1]).mean()
    assert abs(both - (RATE if together else RATE**2)) < LIMIT
    np.testing.assert_array_equal(leave_out(KEYS[5:6], x[None], RATE)[0], y[5])


def test_later_blocks_are_left_out_more_often():
    """And a branch independently of the other: 1/3, 2/3 and all of the share of the last block."""
    regularization = Regularization(keys=KEYS, depth=0.6)
    gone = [
        [np.asarray(regularization.branch(jnp.ones((N, 1)), jnp.int32(block), 3, i) == 0)[:, 0] for i in range(2)]
        for block in range(3)
    ]
    np.testing.assert_allclose(np.mean(gone, axis=-1), np.array([[0.2], [0.4], [0.6]]) * np.ones(2), atol=LIMIT * 1.1)
    assert abs(np.mean(gone[2][0] & gone[2][1]) - 0.36) < LIMIT * 1.1


CONFIG = DiT(patch_size=4, num_layers=2, num_attention_heads=2, attention_head_dim=8)
X = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))


def applied(config, keys=None, **shares):
    network = build(config, size=8, channels=1, num_classes=0)

    @jax.jit
    def apply(params, x, keys):
        regularization = None if keys is None else Regularization(keys=keys, **shares)
        return network.apply(params, x, jnp.zeros(len(x)), {}, regularization=regularization)

    return lambda x, keys=keys: apply(drawn(network), x, keys)


@pytest.mark.parametrize("shares", [{"dropout": 0.4}, {"depth": 0.6}], ids=str)
def test_a_dit_is_trained_with_what_is_left(shares):
    keys = KEYS[:4]
    plain, run = applied(CONFIG)(X), applied(CONFIG, keys, **shares)
    y = run(X)
    assert jnp.abs(y - plain).max() > 1e-2 and jnp.abs(run(X, KEYS[4:8]) - y).max() > 1e-2
    np.testing.assert_allclose(run(X[1:3], keys[1:3]), y[1:3], atol=1e-5)
    unrolled = dataclasses.replace(CONFIG, compute=Compute(scan=False, remat="full"))
    np.testing.assert_allclose(applied(unrolled, keys, **shares)(X), y, atol=1e-5)


def test_nothing_left_out_is_the_network_itself():
    np.testing.assert_array_equal(applied(CONFIG, KEYS[:4])(X), applied(CONFIG)(X))


@pytest.mark.parametrize("name", ["dropout", "depth"])
def test_impossible_shares_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name}: 1.0 is not in \[0, 1\)"):
        Regularization(keys=KEYS, **{name: 1.0})
