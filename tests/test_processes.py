"""Processes against what defines them: their SDE, simulated and solved, their joint Gaussian, and float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq
from scipy.special import expit

from jdiff import rng
from jdiff.processes import EDM, VE, VP, Cosine, RectifiedFlow, Shifted, SubVP, ZeroTerminalSNR, linear_gamma
from tests.table import PROCESSES, TIMES

pytestmark = pytest.mark.usefixtures("x64")
CASES = [(name, t) for name, times in TIMES.items() for t in times]
NO_SIGNAL = {"flow", "shifted_flow", "zero_snr"}  # in the end, nothing is left of the data


def preserving(log_snr):
    return np.sqrt(expit(log_snr)), np.sqrt(expit(-log_snr))


@functools.cache
def defining(name, t):
    """alpha and sigma from the definition of each process, in float64 and without the library."""
    if name in ("vp", "subvp"):
        integral = quad(lambda u: 0.1 + u * 19.9, 0, t)[0]
        lost = -np.expm1(-integral)
        return np.exp(-integral / 2), lost if name == "subvp" else np.sqrt(lost)
    if name == "flow":
        return 1 - t, t
    if name == "cosine":
        f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.sqrt(f(t) / f(0)), np.sqrt(1 - f(t) / f(0))
    if name == "shifted":
        ratio = lambda u: np.divide(*defining("cosine", u))
        u = brentq(lambda u: np.log(ratio(u) / ratio(t)) + 1.4 / 2, 1e-12, 1 - 1e-12, xtol=1e-15, rtol=1e-15)
        return defining("cosine", u)
    if name == "shifted_flow":
        u = 3 * t / (1 + 2 * t)  # Stable Diffusion 3
        return 1 - u, u
    if name == "zero_snr":
        first, last, alpha = (defining("vp", u)[0] for u in (1e-3, 1.0, t))
        alpha = (alpha - last) * first / (first - last)
        return alpha, np.sqrt(1 - alpha**2)
    if name == "learned":
        process = PROCESSES[name]
        logs = [np.asarray(leaf, float) for leaf in (process.log_weights, process.log_steepness, process.centres)]
        h = lambda u: u + sum(np.exp(w) * expit(np.exp(b) * (u - c)) for w, b, c in zip(*logs, strict=True))
        return preserving(13.3 - (13.3 + 5) * (h(t) - h(1e-3)) / (h(1.0) - h(1e-3)))
    if name == "chain":
        kept = np.cumprod(1 - np.linspace(2e-3, 0.4, 50))
        return preserving(np.interp(t, np.arange(1, 51) / 50, np.log(kept / (1 - kept))))
    return 1.0, t


@pytest.mark.parametrize(("name", "t"), CASES)
def test_alpha_and_sigma_match_the_definition(name, t):
    alpha, sigma = defining(name, t)
    np.testing.assert_allclose(PROCESSES[name].alpha(t), alpha, rtol=1e-12)
    np.testing.assert_allclose(PROCESSES[name].sigma(t), sigma, rtol=1e-12)


def test_the_span_ends_where_the_process_does():
    """VP where beta, which is -2 d log(alpha)/dt, has risen to beta_max; the flow where nothing is left of the data."""
    for process in (VP(beta_max=17.0), SubVP(beta_max=17.0)):
        end = process.time_span[1]
        np.testing.assert_allclose(-2 * process.drift(jnp.ones(()), end), 17, rtol=1e-12)
    assert VE().time_span == (0.01, 50) and EDM().time_span == (0.002, 80)
    assert Cosine(t_max=0.9).time_span == (1e-3, 0.9)
    for make in (VP, SubVP, RectifiedFlow, Cosine):
        assert make(t_min=0.02).time_span[0] == 0.02
    for name, process in (PROCESSES | {"cosine_1": Cosine(t_max=1.0)}).items():
        end = process.alpha(process.time_span[1])
        assert (end == 0) == (name in NO_SIGNAL | {"cosine_1"}) and end >= 0


@pytest.mark.parametrize(("name", "t"), CASES)
def test_log_snr_and_its_inverse(name, t):
    alpha, sigma = defining(name, t)
    process = PROCESSES[name]
    np.testing.assert_allclose(process.log_snr(t), np.log(alpha**2 / sigma**2), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(process.time(np.log(alpha**2 / sigma**2)), t, rtol=1e-11)


@pytest.mark.parametrize("name", PROCESSES)
def test_drift_and_diffusion_carry_the_marginal(name):
    """dm/dt = f m and dV/dt = 2 f V + g^2 take the mean and variance of one time to those of another."""
    process, times = PROCESSES[name], TIMES[name]
    rates = jax.jit(lambda t: (process.drift(jnp.full((), 3.0), t) / 3, process.diffusion(t)))

    def moments(t, state):
        f, g = map(float, rates(t))
        assert np.isfinite([f, g]).all()  # the integrator would search for a step without end
        return [f * state[0], 2 * f * state[1] + g**2]

    alpha, sigma = defining(name, times[0])
    state = np.array([alpha, sigma**2])
    # A chain's rates jump at its steps, over which no integrator should have to find its way.
    inside = np.arange(1, 50) / 50 if name == "chain" else np.array(times[1:2])
    stops = [times[0], *inside[(inside > times[0]) & (inside < times[2])], times[2]]
    for start, end in itertools.pairwise(stops):
        gap = 1e-13 if name == "chain" else 0
        state = solve_ivp(moments, (start + gap, end - gap), state, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    alpha, sigma = defining(name, times[2])
    np.testing.assert_allclose(state, [alpha, sigma**2], rtol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_simulated_sde_has_the_marginal(name):
    """Euler-Maruyama from one time to a later one, of a point and of a Gaussian: mean and variance."""
    process, (start, _, end) = PROCESSES[name], TIMES[name]
    mean, std, shape = np.array([1.5, -0.4]), np.array([0.0, 0.8]), (64, 64, 2)
    x0 = mean + std * jax.random.normal(jax.random.key(1), shape)
    x = process.perturb(x0, jax.random.normal(jax.random.key(2), shape), start)
    ends = process.log_snr(jnp.array([start, end]))
    times = process.time(jnp.linspace(ends[0], ends[1], 501)).at[0].set(start).at[-1].set(end)
    keys = rng.per_example(jax.random.key(3), jnp.arange(64))
    draws = np.asarray(jax.jit(process.simulate)(keys, x, times)).reshape(-1, 2)
    alpha, sigma = defining(name, end)
    variance = alpha**2 * std**2 + sigma**2
    # Four standard errors, 9% of the variance; the steps' own bias is 1% of it: half a step in log-SNR, of 10 / 500.
    np.testing.assert_array_less(np.abs(draws.mean(0) - alpha * mean), 4 * np.sqrt(variance / len(draws)))
    np.testing.assert_array_less(np.abs(draws.var(0) / variance - 1), 4 * np.sqrt(2 / len(draws)))


def test_a_simulated_row_depends_on_its_key_alone():
    keys, x = rng.per_example(jax.random.key(0), jnp.arange(3)), jnp.ones((3, 2))
    times = jnp.linspace(0.1, 0.5, 4)
    simulate = jax.jit(VP().simulate)
    rows = simulate(keys, x, times)
    np.testing.assert_allclose(simulate(keys[1:2], x[1:2], times), rows[1:2], rtol=1e-12)
    assert len(np.unique(rows)) == 6
    for times in (jnp.array([0.5, 0.1]), jnp.array([0.0, 0.1])):
        with pytest.raises(ValueError, match="increasing times above zero, got"):
            VP().simulate(keys, x, times)


@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_and_transition_are_conditionals_of_the_joint_gaussian(name):
    process, x, x0 = PROCESSES[name], 1.3, -0.4
    for s, t in [TIMES[name][:2], TIMES[name][1:], TIMES[name][::2]]:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = defining(name, s), defining(name, t)
        # x_t = (alpha_t / alpha_s) x_s + independent noise, so Cov(x_s, x_t | x0) = (alpha_t / alpha_s) sigma_s^2.
        covariance = alpha_t / alpha_s * sigma_s**2
        mean = alpha_s * x0 + covariance / sigma_t**2 * (x - alpha_t * x0)
        variance = sigma_s**2 - covariance**2 / sigma_t**2
        got_mean, got_variance = process.posterior(jnp.full((1, 1), x), jnp.full((1, 1), x0), s, t)
        np.testing.assert_allclose(got_mean, [[mean]], rtol=1e-9)
        np.testing.assert_allclose(got_variance, variance, rtol=1e-9)
        got_mean, got_variance = process.transition(jnp.full((1, 1), x), s, t)
        np.testing.assert_allclose(got_mean, [[alpha_t * x0 + covariance / sigma_s**2 * (x - alpha_s * x0)]], rtol=1e-9)
        np.testing.assert_allclose(got_variance, sigma_t**2 - covariance**2 / sigma_s**2, rtol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_holds_at_both_ends(name):
    """At s = 0 it is the data; from a time without signal it forgets x."""
    process, (s, t) = PROCESSES[name], (TIMES[name][1], PROCESSES[name].time_span[1])
    x, x0 = jnp.full((1, 1), 1.3), jnp.full((1, 1), -0.4)
    mean, variance = process.posterior(x, x0, 0.0, t)
    np.testing.assert_allclose(mean, x0)
    assert variance == 0
    if name in NO_SIGNAL:
        mean, variance = process.posterior(x, x0, s, t)
        alpha, sigma = defining(name, s)
        np.testing.assert_allclose([mean[0, 0], variance], [alpha * -0.4, sigma**2])


@pytest.mark.parametrize("name", PROCESSES)
def test_perturb_mixes_row_by_row(name):
    process, times = PROCESSES[name], jnp.array(TIMES[name])
    alpha, sigma = np.array([defining(name, t) for t in TIMES[name]]).T
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    expected = alpha[:, None, None] * x0 + sigma[:, None, None] * eps
    np.testing.assert_allclose(process.perturb(jnp.array(x0), jnp.array(eps), times), expected, rtol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_prior_has_the_true_terminal_variance(name):
    std = defining(name, PROCESSES[name].time_span[1])[1]
    draws = PROCESSES[name].prior(jax.random.key(0), (200_000,))
    assert draws.dtype == jnp.float32
    error = np.std(draws, dtype=float) / std - 1
    assert abs(error) < 4 / np.sqrt(2 * draws.size)  # four standard errors
    assert abs(np.mean(draws, dtype=float)) < 4 * std / np.sqrt(draws.size)


@pytest.mark.parametrize("name", PROCESSES)
def test_float32_is_stable_near_both_ends(name):
    """Against float64, which is tested against the definition as far as that keeps its digits."""
    process = PROCESSES[name]
    low, high = 1e-6, process.time_span[1]
    t = np.concatenate([np.geomspace(low, 0.99 * high, 100), high - np.geomspace(1e-2 * high, 1e-5, 20)])
    t = np.float32(t).astype(float)

    @jax.jit
    def values(process, t):
        rate = jax.jvp(process.log_snr, (t,), (jnp.ones_like(t),))[1]
        return process.alpha(t), process.sigma(t), process.log_snr(t), process.time(process.log_snr(t)), rate

    alpha, sigma, log_snr, back, rate = map(np.asarray, values(process, jnp.array(t)))
    if name != "learned" and name != "chain":  # whose definition does not say what lies before their first time
        exact_alpha, exact_sigma = np.array([defining(name, float(v)) for v in t[t >= 1e-3]]).T
        np.testing.assert_allclose(alpha[t >= 1e-3], exact_alpha, rtol=1e-10)
        np.testing.assert_allclose(sigma[t >= 1e-3], exact_sigma, rtol=1e-10)
    np.testing.assert_allclose(back, t, rtol=1e-9)
    got = values(process, jnp.float32(t))
    assert all(part.dtype == jnp.float32 for part in got)
    # The learned log-SNR is a sum, scaled to a span of 18; a zero at the end is a difference of what is not zero.
    through = 4e-6 if name == "learned" else 1e-6
    np.testing.assert_allclose(got[0], alpha, rtol=max(through, 2e-6), atol=1e-8 if name == "zero_snr" else 0)
    np.testing.assert_allclose(got[1], sigma, rtol=through)
    # What a rounding of the log-SNR, and one of t, mean for its inverse.
    condition = 1 + (1 + np.abs(log_snr)) / np.abs(t * rate)
    np.testing.assert_array_less(np.abs(np.asarray(got[3]) / t - 1), 4 * 6e-8 * condition)


@pytest.mark.parametrize("name", PROCESSES)
def test_slopes_are_finite_where_a_sampler_starts_and_ends(name):
    """At t_max, even where the log-SNR is not, they are those of differences; they stay monotone up to there."""
    process, (low, high) = PROCESSES[name], PROCESSES[name].time_span
    step = 1e-7 * high
    ends = jnp.array([high, high - step, high - 2 * step])
    times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-6, high, 300)]).at[-1].set(high)
    slopes = lambda t: (process.alpha_slope(t), process.sigma_slope(t))
    all_of = lambda t: (process.alpha(t), process.sigma(t), process.log_snr(t))
    behind, found, near = map(np.asarray, (jax.jit(all_of)(ends)[:2], jax.jit(slopes)(high), jax.jit(slopes)(low)))
    np.testing.assert_allclose(found, behind @ [1.5, -2, 0.5] / step, rtol=1e-5, atol=1e-6)
    assert np.isfinite(near).all()
    alpha, sigma, log_snr = all_of(times)
    assert (np.diff(log_snr) < 0).all()
    assert abs(alpha[0] - 1) < 1e-15 and sigma[0] == 0 and log_snr[0] == np.inf


def test_bad_values_are_named():
    for make, message in [
        (lambda: VP(beta_min=0.0), "VP needs beta_min > 0, got 0.0"),
        (lambda: SubVP(beta_min=0.0), "SubVP needs beta_min > 0, got 0.0"),
        (lambda: VP(beta_max=0.01), "beta_max >= beta_min"),
        (lambda: VP(t_min=0.0), "0 < t_min < 1, got 0.0"),
        (lambda: VE(sigma_min=-1.0), "VE needs sigma_min > 0, got -1.0"),
        (lambda: EDM(sigma_max=0.001), "EDM needs sigma_max > sigma_min = 0.002, got 0.001"),
        (lambda: RectifiedFlow(t_min=1.0), "0 < t_min < 1, got 1.0"),
        (lambda: Cosine(offset=0.0), "offset > 0, got 0.0"),
        (lambda: Cosine(t_min=0.0), "0 < t_min < 1, got 0.0"),
        (lambda: Cosine(t_max=1.5), "t_min < t_max <= 1, got t_max 1.5"),
        (lambda: Shifted(process=VP(), log_snr_shift=float("inf")), "finite log_snr_shift, got inf"),
        (lambda: ZeroTerminalSNR(process=SubVP()), r"variance-preserving process, got SubVP\("),
        (lambda: ZeroTerminalSNR(process=RectifiedFlow()), r"variance-preserving process, got RectifiedFlow\("),
        (lambda: linear_gamma(gamma_max=-14.0), "gamma_max > gamma_min = -13.3, got -14.0"),
        (lambda: linear_gamma(t_min=0.0), "0 < t_min < 1, got 0.0"),
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
    shifted = lambda shift: Shifted(process=ZeroTerminalSNR(process=VP()), log_snr_shift=shift)
    assert sigma(shifted(1.0), 0.5) < sigma(shifted(-1.0), 0.5)
    assert len(traces) == 2
    gradient = jax.jit(jax.grad(lambda process: process.sigma(0.5)))
    assert gradient(VP()).beta_max > 0
    assert gradient(shifted(1.0)).process.process.beta_max > 0
