"""The loss by noise level against its closed form for a network that always answers zero."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.evaluate import loss_by_level, measure
from jdiff.losses import EDMLoss, SimpleLoss
from jdiff.models import Network
from jdiff.prediction import X0, EDMPreconditioning
from jdiff.processes import EDM

ZERO = Network(lambda key: {}, lambda params, x, noise_label, cond: jnp.zeros_like(x))


def test_levels():
    images = np.random.default_rng(0).normal(0, 0.5, size=(75, 8, 8, 3)).astype(np.float32)
    times = jnp.array([20.0, 1.0, 0.05])
    got = loss_by_level(ZERO, {}, EDM(), EDMPreconditioning(), EDMLoss(), images, None, times)
    np.testing.assert_allclose(got, 1, atol=4 * np.sqrt(2 / images.size))  # unit variance at every level, by design
    # eps_hat = x / sigma, so the error is x0 / sigma
    simple = loss_by_level(ZERO, {}, EDM(), X0(), SimpleLoss(), images, None, times)
    np.testing.assert_allclose(simple, np.mean(images**2) / np.asarray(times) ** 2, rtol=1e-4)


def test_floor_and_samples_are_compared_alike():
    generator = np.random.default_rng(1)
    images = generator.uniform(-1, 1, size=(300, 8, 8, 3)).astype(np.float32)
    train, held_out, more = images[:150], images[150:220], images[220:]
    got = measure(lambda seed: more, train, held_out, 80, 2)
    assert got.frechet[0] == got.frechet[1] and got.frechet_floor[0] != got.frechet_floor[1]
    assert got.frechet[0] == pytest.approx(got.frechet_floor[0], rel=0.5)
    worse = measure(lambda seed: np.zeros_like(more), train, held_out, 80, 1)
    assert worse.frechet[0] > 3 * got.frechet[0] and worse.mmd[0] > 3 * abs(got.mmd[0])
    with pytest.raises(ValueError, match="n must be between 2 and the 150 training images, got 200"):
        measure(lambda seed: more, train, held_out, 200, 1)
