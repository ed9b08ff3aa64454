"""Optimizers for large batches: how long their steps are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff.train.optimizer import Optimizer

PARAMS = {"small": jnp.array([[0.03, 0.04]]), "large": jnp.array([[30.0, -40.0]])}
GRADIENT = {"small": jnp.array([[2.0, 1.0]]), "large": jnp.array([[0.001, 0.003]])}


def steps_of(algorithm, rate=0.1, **fields):
    """The change of each array in the first update, over its norm."""
    optimizer = Optimizer(algorithm=algorithm, learning_rate=rate, warmup=0, decay="none", clip=1e6, **fields).build(10)
    updates, _ = optimizer.update(GRADIENT, optimizer.init(PARAMS), PARAMS)
    after = optax.apply_updates(PARAMS, updates)
    norm = lambda tree: jax.tree.map(lambda leaf: float(jnp.linalg.norm(leaf)), tree)
    moved = norm(jax.tree.map(jnp.subtract, after, PARAMS))
    return {name: moved[name] / norm(PARAMS)[name] for name in PARAMS}, after


@pytest.mark.parametrize(("algorithm", "share"), [("lamb", 0.1), ("lars", 1e-4)])
def test_steps_are_a_share_of_what_they_change(algorithm, share):
    moved, _ = steps_of(algorithm)
    rounding = 1e-4 + 6e-8 / share  # of float32 where little is added to much
    assert moved == {name: pytest.approx(share, rel=rounding) for name in PARAMS}


def test_adam_steps_are_not():
    moved, after = steps_of("adamw")
    assert moved["small"] / moved["large"] == pytest.approx(1000, rel=1e-4)
    np.testing.assert_allclose(after["large"], [[29.9, -40.1]], rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("decay", ["cosine", "none"])
def test_the_rate_rises_to_its_height_and_falls_or_stays(warmup, decay):
    schedule = Optimizer(learning_rate=0.5, warmup=warmup, decay=decay).schedule(20)
    rates = [float(schedule(count)) for count in range(1, 21)]  # of update number `count`
    assert max(rates) == pytest.approx(0.5, rel=0.01)
    assert rates[: warmup or 1] == pytest.approx([0.5 * (n + 1) / (warmup or 1) for n in range(warmup or 1)], rel=0.01)
    assert rates[-1] == pytest.approx(0.5 if decay == "none" else 0, abs=0.01) and rates[-1] > 0


def test_an_unknown_one_is_named():
    with pytest.raises(ValueError, match=r"optimizer\.algorithm must be adamw, lamb or lars, got 'sgd'"):
        Optimizer(algorithm="sgd")
