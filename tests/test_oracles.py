"""The oracles against SciPy's densities, quadrature and an ODE solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.stats import multivariate_normal, norm

from jdiff import oracles
from tests.table import PROCESSES, TIMES, anisotropic, two_modes

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("name", PROCESSES)
def test_log_density(name):
    process, t = PROCESSES[name], TIMES[name][1]
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x = np.random.default_rng(0).normal(size=(6, 2))
    density = sum(
        w * multivariate_normal(alpha * m, alpha**2 * c + sigma**2 * np.eye(2)).pdf(x)
        for w, m, c in [
            (0.3, np.array([-0.8, 0.0]), np.array([[0.3, 0.1], [0.1, 0.2]])),
            (0.7, np.array([0.7, 0.4]), np.array([[0.2, 0.0], [0.0, 0.4]])),
        ]
    )
    np.testing.assert_allclose(two_modes().log_density(process, jnp.array(x), t), np.log(density), rtol=1e-10)


@pytest.mark.parametrize("name", PROCESSES)
def test_prediction_is_the_posterior_mean(name):
    """In one dimension, by quadrature over the data."""
    process, t = PROCESSES[name], TIMES[name][1]
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    prior = lambda z: 0.4 * norm.pdf(z, -1, 0.5) + 0.6 * norm.pdf(z, 0.8, 0.3)
    target = oracles.mixture(jnp.array([2.0, 3.0]), jnp.array([[-1.0], [0.8]]), jnp.array([[[0.25]], [[0.09]]]))
    for x in (-1.5, 0.1, 2.0):
        weight = lambda z, x=x: prior(z) * norm.pdf(x, alpha * z, sigma)
        mass = quad(weight, -8, 8, points=[-1, 0.8, np.clip(x / alpha, -7, 7)], limit=400)[0]
        mean = (
            quad(lambda z, weight=weight: z * weight(z), -8, 8, points=[-1, 0.8, np.clip(x / alpha, -7, 7)], limit=400)[
                0
            ]
            / mass
        )
        got = target.predict(process, jnp.array([[x]]), t)
        np.testing.assert_allclose(got.x0, [[mean]], rtol=1e-7)
        np.testing.assert_allclose(got.eps, [[(x - alpha * mean) / sigma]], rtol=1e-7)


@pytest.mark.parametrize("make", [anisotropic, two_modes])
def test_samples_have_the_moments(make):
    target = make()
    draws = np.asarray(target.sample(jax.random.key(1), 200_000))
    mean, covariance = target.moments()
    np.testing.assert_allclose(draws.mean(0), mean, atol=4 * np.sqrt(np.diag(covariance).max() / len(draws)))
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=4 * 2 * np.abs(covariance).max() / np.sqrt(len(draws)))
    # and the moments are those of the components, put together by hand
    if make is two_modes:
        np.testing.assert_allclose(mean, [0.25, 0.28], rtol=1e-12)
        np.testing.assert_allclose(covariance[0, 0], 0.3 * (0.3 + 0.64) + 0.7 * (0.2 + 0.49) - 0.25**2, rtol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_gaussian_flow_solves_the_ode(name):
    process, target = PROCESSES[name], anisotropic()
    start, end = TIMES[name][2], TIMES[name][0]
    x = np.random.default_rng(2).normal(size=(1, 2)) * float(process.sigma(start))
    velocity = jax.jit(lambda t, x: target.predict(process, x[None], t).velocity(process, t)[0])
    path = solve_ivp(velocity, (start, end), x[0], method="DOP853", rtol=1e-10, atol=1e-12)
    got = oracles.gaussian_flow(target, process, jnp.array(x), start, end)
    np.testing.assert_allclose(got[0], path.y[:, -1], rtol=1e-7)


def test_ring():
    target = oracles.ring(modes=4, radius=2.0, std=0.1, dtype=jnp.float64)
    expected = [[2, 0], [0, 2], [-2, 0], [0, -2]]
    np.testing.assert_allclose(target.means, expected, atol=1e-12)
    np.testing.assert_allclose(target.values, 0.01, rtol=1e-9)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\).*got \(3,\)"):
        oracles.mixture(jnp.ones(3), jnp.zeros((2, 2)), jnp.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="one component, got 2"):
        oracles.gaussian_flow(two_modes(), PROCESSES["vp"], jnp.zeros((1, 2)), 0.5, 0.1)
