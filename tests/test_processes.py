"""Processes against what defines them: their SDE, their joint Gaussian, and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from jdiff.processes import EDM, VE, VP, RectifiedFlow
from tests.table import PROCESSES, TIMES

pytestmark = pytest.mark.usefixtures("x64")
CASES = [(name, t) for name, times in TIMES.items() for t in times]


def defining(name, t):
    """alpha and sigma from the definition of each process, in float64 and without the library."""
    if name == "vp":
        integral = quad(lambda u: 0.1 + u * 19.9, 0, t)[0]
        return np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral))
    if name == "flow":
        return 1 - t, t
    return 1.0, t


@pytest.mark.parametrize(("name", "t"), CASES)
def test_alpha_and_sigma_match_the_definition(name, t):
    alpha, sigma = defining(name, t)
    np.testing.assert_allclose(PROCESSES[name].alpha(t), alpha, rtol=1e-12)
    np.testing.assert_allclose(PROCESSES[name].sigma(t), sigma, rtol=1e-12)


def test_the_span_ends_where_the_process_does():
    """VP where beta, which is -2 d log(alpha)/dt, has risen to beta_max; the flow where nothing is left of the data."""
    end = VP(beta_max=17.0).time_span[1]
    np.testing.assert_allclose(-2 * VP(beta_max=17.0).drift(jnp.ones(()), end), 17, rtol=1e-12)
    assert RectifiedFlow().alpha(RectifiedFlow().time_span[1]) == 0
    assert VE().time_span == (0.01, 50) and EDM().time_span == (0.002, 80)
    assert VP(t_min=0.02).time_span[0] == RectifiedFlow(t_min=0.02).time_span[0] == 0.02


@pytest.mark.parametrize(("name", "t"), CASES)
def test_log_snr_and_its_inverse(name, t):
    alpha, sigma = defining(name, t)
    process = PROCESSES[name]
    np.testing.assert_allclose(process.log_snr(t), np.log(alpha**2 / sigma**2), rtol=1e-12)
    np.testing.assert_allclose(process.time(np.log(alpha**2 / sigma**2)), t, rtol=1e-11)


@pytest.mark.parametrize("name", PROCESSES)
def test_drift_and_diffusion_carry_the_marginal(name):
    """dm/dt = f m and dV/dt = 2 f V + g^2 take the mean and variance of one time to those of another."""
    process, (start, _, end) = PROCESSES[name], TIMES[name]

    def moments(t, state):
        f, g = float(process.drift(jnp.full((), 3.0), t)) / 3, float(process.diffusion(t))
        assert np.isfinite([f, g]).all()  # the integrator would search for a step without end
        return [f * state[0], 2 * f * state[1] + g**2]

    alpha, sigma = defining(name, start)
    path = solve_ivp(moments, (start, end), [alpha, sigma**2], rtol=1e-10, atol=1e-12)
    alpha, sigma = defining(name, end)
    np.testing.assert_allclose(path.y[:, -1], [alpha, sigma**2], rtol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (0, 2)])
def test_posterior_is_the_conditional_of_the_joint_gaussian(name, pair):
    process, (s, t) = PROCESSES[name], (TIMES[name][pair[0]], TIMES[name][pair[1]])
    (alpha_s, sigma_s), (alpha_t, sigma_t) = defining(name, s), defining(name, t)
    x, x0 = 1.3, -0.4
    # x_t = (alpha_t / alpha_s) x_s + independent noise, so Cov(x_s, x_t | x0) = (alpha_t / alpha_s) sigma_s^2.
    covariance = alpha_t / alpha_s * sigma_s**2
    mean = alpha_s * x0 + covariance / sigma_t**2 * (x - alpha_t * x0)
    variance = sigma_s**2 - covariance**2 / sigma_t**2
    got_mean, got_variance = process.posterior(jnp.full((1, 1), x), jnp.full((1, 1), x0), s, t)
    np.testing.assert_allclose(got_mean, [[mean]], rtol=1e-10)
    np.testing.assert_allclose(got_variance, variance, rtol=1e-10)


@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_holds_at_both_ends(name):
    """At s = 0 it is the data; from a time without signal it forgets x."""
    process = PROCESSES[name]
    x, x0 = jnp.full((1, 1), 1.3), jnp.full((1, 1), -0.4)
    mean, variance = process.posterior(x, x0, 0.0, process.time_span[1])
    np.testing.assert_allclose(mean, x0)
    assert variance == 0
    if name == "flow":
        mean, variance = process.posterior(x, x0, 0.5, 1.0)
        np.testing.assert_allclose([mean[0, 0], variance], [0.5 * -0.4, 0.25])


@pytest.mark.parametrize("name", PROCESSES)
def test_perturb_mixes_row_by_row(name):
    process, times = PROCESSES[name], jnp.array(TIMES[name])
    alpha, sigma = np.array([defining(name, t) for t in TIMES[name]]).T
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    expected = alpha[:, None, None] * x0 + sigma[:, None, None] * eps
    np.testing.assert_allclose(process.perturb(jnp.array(x0), jnp.array(eps), times), expected, rtol=1e-12)


@pytest.mark.parametrize(("name", "std"), [("vp", np.sqrt(1 - np.exp(-10.05))), ("ve", 50), ("edm", 80), ("flow", 1)])
def test_prior_has_the_true_terminal_variance(name, std):
    draws = PROCESSES[name].prior(jax.random.key(0), (200_000,))
    assert draws.dtype == jnp.float32
    error = np.std(draws, dtype=float) / std - 1
    assert abs(error) < 4 / np.sqrt(2 * draws.size)  # four standard errors
    assert abs(np.mean(draws, dtype=float)) < 4 * std / np.sqrt(draws.size)


@pytest.mark.parametrize("name", PROCESSES)
def test_float32_is_stable_near_the_data(name):
    process = PROCESSES[name]
    t = np.logspace(-6, np.log10(0.99 * process.time_span[1]), 200)
    alpha, sigma = np.array([defining(name, float(np.float32(v))) for v in t]).T
    np.testing.assert_allclose(process.alpha(jnp.float32(t)), alpha, rtol=2e-6)
    got = process.sigma(jnp.float32(t))
    assert got.dtype == jnp.float32
    # 1 - exp(-z) itself loses digits in float64 near zero: -expm1(-z) is the reference.
    if name == "vp":
        z = np.float64(np.float32(t)) ** 2 * 19.9 / 2 + np.float64(np.float32(t)) * 0.1
        sigma = np.sqrt(-np.expm1(-z))
    np.testing.assert_allclose(got, sigma, rtol=1e-6)
    np.testing.assert_allclose(process.time(process.log_snr(jnp.float32(t))), t, rtol=2e-5)


def test_bad_values_are_named():
    for make, message in [
        (lambda: VP(beta_min=0.0), "beta_min > 0, got 0.0"),
        (lambda: VP(beta_max=0.01), "beta_max >= beta_min"),
        (lambda: VP(t_min=0.0), "0 < t_min < 1, got 0.0"),
        (lambda: VE(sigma_min=-1.0), "VE needs sigma_min > 0, got -1.0"),
        (lambda: EDM(sigma_max=0.001), "EDM needs sigma_max > sigma_min = 0.002, got 0.001"),
        (lambda: RectifiedFlow(t_min=1.0), "0 < t_min < 1, got 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match=r"must have shape \(\) or \(2,\), got \(3,\)"):
        VP().perturb(jnp.zeros((2, 4)), jnp.zeros((2, 4)), jnp.full(3, 0.5))


def test_values_are_traced():
    """A process is a pytree: other values of its fields compile nothing, and gradients reach them."""
    traces = []

    @jax.jit
    def sigma(process, t):
        traces.append(1)
        return process.sigma(t)

    assert sigma(VP(beta_max=10.0), 0.5) < sigma(VP(beta_max=30.0), 0.5)
    assert len(traces) == 1
    assert jax.grad(lambda process: process.sigma(0.5))(VP()).beta_max > 0
