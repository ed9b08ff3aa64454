"""Sampling as users do it: same seed, same drawing, one compilation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import rng
from jdiff.models import Network
from jdiff.pipelines import Pipeline, Sampling
from jdiff.prediction import X0
from jdiff.processes import VP

CLASSES = 3
compiled = []


def apply(params, x, noise_label, cond):
    """An x0-network that answers with its class, tinted by x, so that guidance and noise can be seen."""
    compiled.append(x.shape)
    label = cond["label"].astype(x.dtype).reshape(-1, 1, 1, 1)
    return params["gain"] * label + 0.1 * jnp.tanh(x)


NETWORK = Network(lambda key: {"gain": jnp.float32(1)}, apply)
PARAMS = {"gain": jnp.float32(0.25)}


def pipeline(**sampling):
    compiled.clear()
    return Pipeline(
        NETWORK, VP(), X0(), shape=(4, 4, 3), num_classes=CLASSES, sampling=Sampling(steps=5, **sampling), chunk=16
    )


def test_sample_17_is_the_same_drawing_alone_or_among_64():
    draw = pipeline(solver="ddpm")
    among = draw(PARAMS, seed=3, index=range(64), label=np.arange(64) % 3)
    alone = draw(PARAMS, seed=3, index=[17], label=[17 % 3])
    np.testing.assert_allclose(alone[0], among[17], atol=1e-6)
    assert among.shape == (64, 4, 4, 3)
    assert np.abs(among[17] - among[20]).max() > 1e-3  # of the same class
    other = draw(PARAMS, seed=4, index=[17], label=[17 % 3])
    assert np.abs(other - alone).max() > 1e-3


def test_values_compile_nothing():
    draw = pipeline(guidance=2.0)
    draw(PARAMS, seed=0, index=range(5), label=[0] * 5)
    traced = len(compiled)
    draw(PARAMS, seed=1, index=range(40), label=[2] * 40)
    draw(jax.tree.map(lambda leaf: leaf * 2, PARAMS), seed=1, index=[3], label=[1])
    draw.sampling = dataclasses.replace(draw.sampling, guidance=5.0)
    draw.grid = draw.grid * 0.99 + 0.005
    draw(PARAMS, seed=1, index=[3], label=[1])
    assert len(compiled) == traced


def test_guidance():
    """x0 is linear in the label here: null 3, class 1, scale s give 3 + s (1 - 3)."""
    for scale, expected, rows in [(1.0, 1.0, 16), (2.0, -1.0, 32), (0.0, 3.0, 32)]:
        draw = pipeline(guidance=scale)
        got = draw(PARAMS, seed=0, index=range(2), label=[1, 1])
        assert draw.evaluations == 5 * rows / 16
        assert {shape[0] for shape in compiled} == {rows}  # without guidance the network is not evaluated twice
        np.testing.assert_allclose(got, 0.25 * expected, atol=0.11 * max(1, 2 * scale))


def test_no_label_is_the_null_class_and_bad_ones_are_named():
    draw = pipeline()
    np.testing.assert_array_equal(draw(PARAMS, seed=0, index=[0]), draw(PARAMS, seed=0, index=[0], label=[CLASSES]))
    with pytest.raises(ValueError, match=r"label must be in 0\.\.3, got 4\.\.4"):
        draw(PARAMS, seed=0, index=[0], label=[4])
    with pytest.raises(ValueError, match="one class for each of the 2 samples, got 1"):
        draw(PARAMS, seed=0, index=[0, 1], label=[1])
    with pytest.raises(ValueError, match=r"solver must be one of .*'heun'.*, got 'rk9'"):
        Sampling(solver="rk9")
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        Sampling(steps=1)


def test_trajectories_start_at_the_prior_and_end_at_the_samples():
    draw = pipeline()
    path = draw(PARAMS, seed=3, index=range(20), label=[1] * 20, trajectory=True)
    assert path.shape == (6, 20, 4, 4, 3)
    np.testing.assert_allclose(path[-1], draw(PARAMS, seed=3, index=range(20), label=[1] * 20), atol=1e-6)
    keys = rng.per_example(rng.named(jax.random.key(3), "sample"), jnp.arange(20, dtype=jnp.uint32))
    prior = jax.vmap(lambda key: VP().prior(key, (4, 4, 3)))(rng.named(keys, "prior"))
    np.testing.assert_allclose(path[0], prior, rtol=1e-6)
