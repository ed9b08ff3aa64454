"""Langevin dynamics against the stationary law of its discretization on a Gaussian, which is Gaussian."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.samplers import AnnealedLangevin, PredictorCorrector
from tests.samplers.tools import SMOOTH, grid_between, marginal, measured_order, moments_at_the_end
from tests.table import anisotropic


def stationary(process, t, target, snr):
    """Mean and covariance of x_t under infinitely many steps: C = (1 - h P) C (1 - h P) + 2 h, with P the precision.

    In P's eigenvectors, c = 2 h / (1 - (1 - h p)^2).
    """
    mean, covariance = marginal(process, t, target)
    values, vectors = np.linalg.eigh(covariance)
    step = 2 * (snr * process.sigma(t)) ** 2
    return mean, (vectors * (2 * step / (1 - (1 - step / values) ** 2))) @ vectors.T


@pytest.mark.usefixtures("x64")
def test_many_steps_reach_the_stationary_law():
    (process, _), target, snr = SMOOTH["vp"], anisotropic(), 0.4
    got = moments_at_the_end(AnnealedLangevin(corrections=60, snr=snr))(process, target, jnp.array([0.7, 0.6]))
    for value, expected in zip(got, stationary(process, 0.6, target, snr), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", [PredictorCorrector(snr=0.5), AnnealedLangevin(corrections=2)], ids=["pc", "alone"])
def test_more_steps_reach_that_law_and_not_the_target(solver):
    """What order 0 means: the distance from the biased law is of order 1, that from the target stays."""
    (process, start), target, steps = SMOOTH["vp"], anisotropic(), (128, 256, 512)
    end, errors = process.time_span[0], []
    biased, true = stationary(process, end, target, solver.snr)[1], marginal(process, end, target)[1]
    for n in steps:
        covariance = moments_at_the_end(solver)(process, target, grid_between(process, start, n))[1]
        errors.append(np.linalg.norm(covariance - biased))
    assert measured_order(steps, errors) == pytest.approx(1, abs=0.2), (errors, np.linalg.norm(biased - true))
    assert errors[-1] < np.linalg.norm(covariance - true)
