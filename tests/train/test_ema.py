"""Averages of parameters: their weights over updates, found by averaging the updates' own numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.train import ema


def weights(update, steps, size=None):
    """How much each update weighs: what becomes of unit vectors, one an update."""
    size = steps if size is None else size
    average = {"x": jnp.zeros(size)}
    for step in range(steps):
        average = update(average, {"x": jnp.eye(size)[step]}, jnp.int32(step))
    return np.asarray(average["x"])


def test_the_average_has_a_growing_horizon_and_then_a_mean():
    plain = weights(lambda a, p, n: ema.update(a, p, n, 0.5), 12)
    np.testing.assert_allclose(plain[-3:], [1 / 8, 1 / 4, 1 / 2], rtol=1e-5)  # the horizon is short by now
    assert plain[0] < 1e-3 and plain.sum() < 1  # what was there before the first update is not ours
    swa = weights(lambda a, p, n: ema.update(a, p, n, 0.9, swa=5), 12)
    np.testing.assert_allclose(swa[:4], 0)
    np.testing.assert_allclose(swa[4:], 1 / 8, rtol=1e-5)  # updates number 5 to 12


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_a_profile_has_its_width(sigma_rel):
    steps = 1000
    found = weights(lambda a, p, n: ema.update_profile(a, p, n, sigma_rel), steps)
    s = (np.arange(steps) + 0.5) / steps
    assert found.sum() == pytest.approx(1, abs=1e-4)
    mean = (found * s).sum()
    assert ((found * (s - mean) ** 2).sum()) ** 0.5 == pytest.approx(sigma_rel, rel=0.01)


def error(width, every, steps=512):
    """Of the weights, summed over updates, where the weights are 1 in all."""
    kept, profiles = [], {0.05: {"x": jnp.zeros(steps)}, 0.1: {"x": jnp.zeros(steps)}}
    for step in range(steps):
        for kind, average in profiles.items():
            profiles[kind] = ema.update_profile(average, {"x": jnp.eye(steps)[step]}, jnp.int32(step), kind)
            if (step + 1) % every == 0:
                kept.append(((step + 1, kind), np.asarray(profiles[kind]["x"])))
    chosen = ema.combination([about for about, _ in kept], steps, width)
    got = sum(weight * vector for weight, (_, vector) in zip(chosen, kept, strict=True))
    return np.abs(got - weights(lambda a, p, n: ema.update_profile(a, p, n, width), steps)).sum()


def test_other_profiles_are_put_together_from_snapshots():
    """The better, the more snapshots there are: the error falls with the square of their distance."""
    for width in (0.07, 0.12, 0.2):
        coarse, fine = error(width, 64), error(width, 16)
        assert fine < 0.01 and fine < coarse / 9


def test_what_was_kept_is_given_back():
    np.testing.assert_allclose(ema.combination([(512, 0.05), (512, 0.1)], 512, 0.1), [0, 1], atol=1e-6)
    few = ema.combination([(8, 0.05), (8, 0.2), (16, 0.05), (16, 0.2)], 16, 0.1)
    assert few.sum() == pytest.approx(1, abs=1e-9)  # however bad the fit, it is an average


def test_what_does_not_fit_is_named():
    for width in (0.0, -1.0, 0.3):
        with pytest.raises(ValueError, match="sigma_rel must be above 0 and at most"):
            ema.exponent(width)
    with pytest.raises(ValueError, match="are not all of updates up to 10"):
        ema.combination([(11, 0.1)], 10, 0.1)
