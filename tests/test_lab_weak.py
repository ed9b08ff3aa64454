"""Weak errors without sampling, against the exact moments of Gaussians and a plain simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import lab, oracles
from jdiff.lab import defects
from jdiff.processes import VP
from jdiff.samplers import (
    DDPM,
    ERSDE,
    SEEDS,
    SOLVERS,
    DPMpp2MSDE,
    PredictorCorrector,
    Restart,
    SASolver,
    integrate,
)

pytestmark = pytest.mark.usefixtures("x64")
PROCESS = VP(t_min=0.05)


def late(n: int) -> jax.Array:
    """n + 1 times in equal steps of log-SNR, from 0.1 to 30."""
    return PROCESS.time(jnp.linspace(np.log(0.1), np.log(30.0), n + 1))


def observed(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """E x, E x^2, E x_0 x_1 and E |x|^4 of a Gaussian: E |x|^2 squared, plus the variance of |x|^2."""
    second = covariance + np.outer(mean, mean)
    variance = 2 * np.trace(covariance @ covariance) + 4 * mean @ covariance @ mean
    return np.array([*mean, second[0, 0], second[1, 1], second[0, 1], np.trace(second) ** 2 + variance])


@pytest.mark.parametrize("solver, steps", [(SEEDS(), 12), (Restart(), 4)], ids=["parts", "fresh"])
def test_of_a_gaussian_they_are_those_of_the_exact_moments(solver, steps):
    """Noise in parts, whose rule is for short steps, and fresh noise, whose rule is for any."""
    target, grid = lab.target("gaussian"), late(steps)
    ends = lab.gaussian_moments(solver)(PROCESS, target, grid)
    truth = lab.marginal(PROCESS, grid[-1], target)
    expected = observed(*map(np.asarray, ends)) - observed(*map(np.asarray, truth))
    got = lab.weak_errors(solver, PROCESS, target, grid, 32)
    assert np.linalg.norm(expected) > 1e-3
    np.testing.assert_allclose(got, expected, atol=2e-3 * float(np.linalg.norm(expected)))


def test_of_a_mixture_they_are_those_of_a_simulation():
    target, grid, n = lab.target("mixture"), late(4), 40_000
    x0 = jnp.asarray(target.sample(jax.random.key(0), n), jnp.float64)
    x = PROCESS.perturb(x0, jax.random.normal(jax.random.key(1), x0.shape, x0.dtype), grid[0])
    run = jax.jit(lambda x: integrate(lab.keys_of(n), x, target.denoiser(PROCESS), PROCESS, DDPM(), grid))
    end = np.asarray(run(x))
    # The truth from the same data, noised: what the draw of the data scatters cancels in part.
    truth = np.asarray(PROCESS.perturb(x0, jax.random.normal(jax.random.key(2), x0.shape, x0.dtype), grid[-1]))
    of = lambda x: np.stack([*x.T, *(x**2).T, x[:, 0] * x[:, 1], (x**2).sum(axis=1) ** 2], axis=1)
    change = of(end) - of(truth)
    got = lab.weak_errors(DDPM(), PROCESS, target, grid, 32)
    scatter = change.std(axis=0) / np.sqrt(n)
    assert (np.abs(got)[2:4] > 10 * scatter[2:4]).all()
    np.testing.assert_array_less(np.abs(change.mean(axis=0) - got), 4 * scatter)


@pytest.mark.slow  # four lattices to compile
def test_an_error_below_what_the_lattices_resolve_is_not_known():
    """Ancestral sampling of a single point is exact, so that all there is to see is the lattice."""
    point = oracles.gaussian(jnp.asarray([0.3, -0.2]), jnp.zeros((2, 2)))
    assert lab.weak_error(DDPM(), PROCESS, point, late(1)) is None


@pytest.mark.slow  # many paths
@pytest.mark.parametrize("solver", [ERSDE(memory=2), SASolver()], ids=repr)
def test_of_multistep_methods_they_are_those_of_the_exact_moments(solver):
    """On a Gaussian, within what the estimate says of itself: at most a tenth."""
    target, grid = lab.target("gaussian"), late(16)
    ends = lab.gaussian_moments(solver)(PROCESS, target, grid)
    truth = lab.marginal(PROCESS, grid[-1], target)
    expected = observed(*map(np.asarray, ends)) - observed(*map(np.asarray, truth))
    got, covariance = lab.multistep_weak_errors(solver, PROCESS, target, grid, 32, batches=12)
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(got - expected), 4 * spread)
    assert (spread[2:] < np.abs(expected[2:]) / 10).all()


def test_methods_are_told_apart_by_their_memory():
    assert all(map(lab.memoryless, (DDPM(), SEEDS(), Restart(), SOLVERS["er_sde_1"])))
    assert not any(map(lab.memoryless, (DPMpp2MSDE(), SOLVERS["er_sde_2"], SOLVERS["sa_solver"])))


def test_several_draws_of_which_one_is_fresh_are_refused():
    with pytest.raises(ValueError, match="one fresh noise or increments of a path, got 2 draws"):
        lab.weak_errors(PredictorCorrector(), PROCESS, lab.target("gaussian"), late(2), 16)


def test_a_sampled_error_is_that_of_the_first_lattices_that_agree(monkeypatch):
    asked, found = [], {48: 1.5, 64: 1.05, 96: 1.0}

    def sampled(solver, process, target, grid, points, batches):
        asked.append((points, batches))
        return found[points] * jnp.eye(6)[5], (0.1**2 / batches) * jnp.eye(6)

    monkeypatch.setattr(defects, "multistep_weak_errors", sampled)
    error = lambda: lab.multistep_weak_error(ERSDE(memory=2), PROCESS, lab.target("ring8"), late(4), most=8)
    norm, scatter = error()
    assert (norm, scatter) == pytest.approx((1, 0.1 / 8**0.5))
    assert asked == [(48, 1), (64, 1), (96, 1), (96, 8)]
    found[96] = 0.9
    assert error() is None
