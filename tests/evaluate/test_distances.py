"""Distances against closed forms, and the feature space against what it must tell apart."""

import numpy as np
import pytest

from jdiff import evaluate


def test_frechet_of_gaussians():
    """Draws whitened to exact moments: |m|^2 + tr (C1^1/2 - C2^1/2)^2 for covariances that commute."""
    draws = np.random.default_rng(0).normal(size=(500, 3))
    draws = (draws - draws.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(draws.T))).T
    scale, shift = np.array([2.0, 1.0, 0.5]), np.array([1.0, 0.0, -2.0])
    got = evaluate.frechet(draws, draws * scale + shift)
    assert got == pytest.approx(5 + np.sum((1 - scale) ** 2), rel=1e-6)
    assert evaluate.frechet(draws, draws) == pytest.approx(0, abs=1e-6)
    # and for covariances that do not commute, against the matrix square root
    from scipy.linalg import sqrtm

    turned = draws @ np.array([[1.0, 0.4, 0.0], [0.0, 1.0, 0.3], [0.2, 0.0, 2.0]])
    first, second = np.cov((draws * scale).T), np.cov(turned.T)
    expected = np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert evaluate.frechet(draws * scale, turned) == pytest.approx(expected, rel=1e-6)


def test_frechet_with_fewer_rows_than_features():
    draws = np.random.default_rng(1).normal(size=(20, 64))
    assert evaluate.frechet(draws, draws) == pytest.approx(0, abs=1e-6)
    assert evaluate.frechet(draws, draws + 1) == pytest.approx(64, rel=1e-6)


def test_mmd():
    """Zero in the mean for equal sources; by hand for two points against two."""
    generator = np.random.default_rng(2)
    same = [evaluate.mmd(generator.normal(size=(40, 2)), generator.normal(size=(40, 2))) for _ in range(400)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 20
    assert evaluate.mmd(generator.normal(size=(40, 2)), generator.normal(size=(40, 2)) + 2) > 1
    a, b = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    # k = (xy + 1)^3: inside a (2 + 1)^3, inside b 1, between (1 + 64 + 1 + 343) / 4
    assert evaluate.mmd(a, b) == pytest.approx(27 + 1 - 2 * (1 + 64 + 1 + 343) / 4)


def test_bad_features_are_named():
    with pytest.raises(ValueError, match=r"b must have shape \[n, 3\] with n >= 2, got \(5, 2\)"):
        evaluate.frechet(np.zeros((5, 3)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="b has values that are not finite"):
        evaluate.mmd(np.zeros((5, 3)), np.full((5, 3), np.nan))


def test_features_see_edges_and_do_not_depend_on_the_batch():
    images = np.random.default_rng(3).uniform(-1, 1, size=(400, 16, 16, 3)).astype(np.float32)
    all_of_them, one = evaluate.features(images), evaluate.features(images[66:67])
    assert all_of_them.shape == (400, 64)
    np.testing.assert_allclose(one[0], all_of_them[66], rtol=1e-4, atol=1e-5)
    smooth = np.repeat(np.repeat(images[:, ::4, ::4], 4, 1), 4, 2)
    noise = evaluate.frechet(evaluate.features(images[:200]), evaluate.features(images[200:]))
    assert evaluate.frechet(all_of_them[:200], evaluate.features(smooth[200:])) > 2 * noise
