"""Learned and analytic variances of ancestral sampling against optima that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import oracles
from jdiff.lab import measure
from jdiff.prediction import Prediction
from jdiff.samplers import DDPM, NoiseEnergy, integrate, noise_energy
from tests.samplers.tools import SMOOTH, SMOOTH_TARGETS, handed_in, keys_of, marginal
from tests.table import anisotropic, two_modes


def noise_variance(solver, process, denoise, t, s):
    """Of each value of one step."""
    drawn = jnp.array([0.7, -1.3]).reshape(1, 1, 1, 2)
    run = lambda z: integrate(
        keys_of(1), jnp.full((1, 2), 0.2), denoise, process, solver, jnp.array([t, s]), noise=handed_in(z, z)
    )
    return (((run(drawn) - run(0 * drawn)) / drawn[0, 0]) ** 2)[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", SMOOTH)
def test_energy_and_optimal_variance_of_a_gaussian(process_name):
    """Exactly: given x_t, x_s of a Gaussian target is Gaussian, too."""
    (process, t), target = SMOOTH[process_name], anisotropic()
    s, keys = 0.5 * t, keys_of(4096)
    _, later = marginal(process, t, target)
    _, earlier = marginal(process, s, target)
    x0 = target.sample(jax.random.key(1), 4096)
    energy = noise_energy(keys, x0, target.denoiser(process), process, jnp.array([s, t]))
    # eps = sigma Sigma^-1 (x - m): its square has this mean over x, and for the estimate a known variance.
    exact = [float(process.sigma(u) ** 2 * np.trace(np.linalg.inv(c)) / 2) for u, c in [(s, earlier), (t, later)]]
    spreads = [
        float(np.sqrt(2 * np.trace(np.linalg.matrix_power(process.sigma(u) ** 2 * np.linalg.inv(c), 2)) / 4 / 4096))
        for u, c in [(s, earlier), (t, later)]
    ]
    for got, expected, spread in zip(energy.values, exact, spreads, strict=True):
        assert abs(got - expected) < 4 * spread
    table = NoiseEnergy(times=jnp.array([s, t]), values=jnp.array(exact))
    step = process.alpha(t) / process.alpha(s)
    optimum = np.trace(earlier - step**2 * earlier @ np.linalg.inv(later) @ earlier) / 2
    got = noise_variance(DDPM(variance="analytic", energy=table), process, target.denoiser(process), t, s)
    np.testing.assert_allclose(got, optimum, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_optimal_variance_of_a_mixture():
    """The mean square of x_s about the step's mean, over true pairs of the forward process, to four standard errors."""
    (process, t), target, n = SMOOTH["vp"], two_modes(), 20000
    t, s = 0.5, 0.3
    x0 = target.sample(jax.random.key(1), n)
    energy = noise_energy(keys_of(n), x0, target.denoiser(process), process, jnp.array([t]))
    z = jax.random.normal(jax.random.key(2), (2, n, 2))
    x_s = process.perturb(x0, z[0], s)
    ratio = process.alpha(t) / process.alpha(s)
    x_t = ratio * x_s + jnp.sqrt(process.sigma(t) ** 2 - (ratio * process.sigma(s)) ** 2) * z[1]
    solver, zero = DDPM(variance="analytic", energy=energy), jnp.zeros((1, 1, n, 2))
    run = lambda solver: integrate(
        keys_of(n), x_t, target.denoiser(process), process, solver, jnp.array([t, s]), noise=handed_in(zero, zero)
    )
    squares = np.mean((x_s - run(solver)) ** 2, axis=1)
    error = np.std(squares) / np.sqrt(n)
    got = noise_variance(solver, process, target.denoiser(process), t, s)[0]
    # The estimate of the energy has an error of its own, which is of the same size.
    assert abs(got - squares.mean()) < 4 * np.sqrt(2) * error
    for other in ("beta_tilde", "beta"):
        away = noise_variance(DDPM(variance=other), process, target.denoiser(process), t, s)[0]
        assert abs(away - squares.mean()) > 8 * error, other


@pytest.mark.usefixtures("x64")
def test_a_round_gaussian_is_sampled_exactly_in_three_steps():
    """There the analytic variance is the whole truth."""
    (process, start), target = SMOOTH["vp"], oracles.gaussian(jnp.array([0.3, -0.2]), 0.5 * jnp.eye(2))
    grid = jnp.array([start, 0.5, 0.2, 0.05])
    variance = process.alpha(grid) ** 2 * 0.5 + process.sigma(grid) ** 2
    energy = NoiseEnergy(times=grid, values=process.sigma(grid) ** 2 / variance)
    solver = DDPM(variance="analytic", energy=energy)
    got = measure.gaussian_moments(solver)(process, target, grid)
    for value, expected in zip(got, marginal(process, grid[-1], target), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_between_its_times_an_energy_is_interpolated():
    (process, _), target = SMOOTH["edm"], SMOOTH_TARGETS["gaussian"]()
    times = jnp.array([0.1, 1.0, 4.0])
    energy = NoiseEnergy(times=times, values=jnp.array([0.1, 0.5, 0.9]))
    np.testing.assert_allclose([energy.at(process, t) for t in times], energy.values, rtol=1e-9)
    assert 0.5 < energy.at(process, jnp.array(2.0)) < 0.9
    np.testing.assert_allclose(energy.at(process, jnp.array(9.0)), 0.9)
    assert target.denoiser(process) is not None


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", SMOOTH)
def test_a_learned_variance_runs_between_its_bounds(process_name):
    """At 0 that of the posterior, at 1 that of the forward step, and their geometric mean half way: for each value."""
    (process, t), exact = SMOOTH[process_name], anisotropic().denoiser(SMOOTH[process_name][0])
    s = 0.6 * t

    def denoise(x, t):
        prediction = exact(x, t)
        return Prediction(prediction.x0, prediction.eps, jnp.broadcast_to(jnp.array([0.5, 1.0]), x.shape))

    low, high = (noise_variance(DDPM(variance=v), process, exact, t, s)[0] for v in ("beta_tilde", "beta"))
    got = noise_variance(DDPM(variance="learned"), process, denoise, t, s)
    np.testing.assert_allclose(got, [np.sqrt(low * high), high], rtol=1e-8)


def test_bad_values_are_named():
    process, x = SMOOTH["vp"][0], jnp.zeros((2, 2))
    exact = anisotropic(jnp.float32).denoiser(process)
    with pytest.raises(ValueError, match="needs a prediction with a variance, got None"):
        integrate(keys_of(2), x, exact, process, DDPM(variance="learned"), jnp.array([0.5, 0.2]))
    with pytest.raises(ValueError, match=r"energy .* for variance 'analytic' .* got 'analytic' and none"):
        DDPM(variance="analytic")
    with pytest.raises(ValueError, match="got 'beta' and one"):
        DDPM(variance="beta", energy=NoiseEnergy(times=jnp.ones(1), values=jnp.ones(1)))
    with pytest.raises(ValueError, match=r"one key an example, got \(3,\)"):
        noise_energy(keys_of(3), x, exact, process, jnp.array([0.5]))
