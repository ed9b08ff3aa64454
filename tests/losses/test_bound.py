"""The variational bound against linear Gaussian chains written out as dense matrices, and against integrals.

The data are N(m, C), one value each, and the denoiser is exact; expectations over the noise are Gauss-Hermite sums,
which are exact for the bound's quadratics.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

from jdiff import oracles, rng
from jdiff.losses import (
    GridTime,
    HybridLoss,
    LogUniformTime,
    SimpleLoss,
    UniformTime,
    VariationalLoss,
    continuous_bound,
    discretized_log_likelihood,
    variational_bound,
)
from jdiff.losses.bound import prior_kl, reconstruction, step_kl
from jdiff.prediction import X0, Eps, LearnedVariance, Prediction
from jdiff.processes import EDM, VP, RectifiedFlow, linear_gamma, match
from jdiff.samplers import grids

MEAN, VARIANCE = 0.4, 0.3
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
PROCESSES = {"vp": VP(t_min=0.02), "flow": RectifiedFlow(t_min=0.05), "edm": EDM(sigma_min=0.1, sigma_max=3.0)}


def target():
    return oracles.gaussian(jnp.array([MEAN]), jnp.array([[VARIANCE]]))


def with_variance(predict, share):
    """A denoiser with a variance's fraction, a scalar or one a row."""
    return lambda x, t: dataclasses.replace(predict(x, t), variance=match(share, x) * jnp.ones_like(x))


def moments(process, times):
    """alpha and sigma of times, as NumPy arrays."""
    return np.asarray(process.alpha(times)), np.asarray(process.sigma(times))


def step_variances(process, s, t):
    """Var(x_s | x_t, x0), Var(x_t | x_s) and Var(x_s | x_t) for the target, by adding precisions."""
    (a_s, sd_s), (a_t, sd_t) = moments(process, s), moments(process, t)
    forward = sd_t**2 - (a_t / a_s * sd_s) ** 2
    seen = (a_t / a_s) ** 2 / forward
    return 1 / (seen + sd_s**-2), forward, 1 / (seen + 1 / (a_s**2 * VARIANCE + sd_s**2))


def best_fractions(process, grid):
    """Where the true reverse variances of a grid's steps lie between their bounds, [T - 1]."""
    low, high, true = (np.log(v) for v in step_variances(process, grid[1:], grid[:-1]))
    return (true - low) / (high - low)


@partial(jax.jit, static_argnames="learned")
def bound_terms(process, x0, grid, shares, *, learned=True):
    """The expectation of the bound's three terms for one x0, by the library's parts and Gauss-Hermite sums. The
    prediction holds the steps' fractions `shares` [T - 1], or none."""
    n, steps = len(NODES), grid.shape[0] - 1
    s, t, share = (jnp.repeat(part, n) for part in (grid[1:], grid[:-1], shares))
    eps = jnp.tile(jnp.asarray(NODES), steps)[:, None]
    data = jnp.full_like(eps, x0)
    denoise = target().denoiser(process)
    prediction = (with_variance(denoise, share) if learned else denoise)(process.perturb(data, eps, t), t)
    kl = step_kl(process, prediction, data, s, t).reshape(-1, n) @ jnp.asarray(WEIGHTS)
    eps, data = eps[:n], data[:n]
    prediction = denoise(process.perturb(data, eps, grid[-1]), grid[-1])
    last = reconstruction(process, prediction, data, grid[-1], "gaussian") @ jnp.asarray(WEIGHTS)
    return prior_kl(process, data[:1], grid[0])[0], kl.sum(), last


def dense_bound(process, x0, grid, kind):
    """(bound, -log p(x0)) from the joint Gaussians of the whole chain; kind: index into `step_variances`."""
    a, sd = moments(process, grid)
    # the model: x_T from the prior, then each x_s around E[x_s | x_t] of the target, at last x0
    mean, rows, noise = [0.0], [np.eye(1, len(grid) + 1)[0] * sd[0]], len(grid) + 1
    for i in range(1, len(grid)):
        marginal_s, marginal_t = (a[j] ** 2 * VARIANCE + sd[j] ** 2 for j in (i, i - 1))
        gain = a[i - 1] / a[i] * marginal_s / marginal_t
        mean.append(a[i] * MEAN + gain * (mean[-1] - a[i - 1] * MEAN))
        std = np.sqrt(step_variances(process, grid[i], grid[i - 1])[kind])
        rows.append(gain * rows[-1] + std * np.eye(1, noise, i)[0])
    gain = a[-1] * VARIANCE / (a[-1] ** 2 * VARIANCE + sd[-1] ** 2)
    mean.append(MEAN + gain * (mean[-1] - a[-1] * MEAN))
    rows.append(gain * rows[-1] + sd[-1] * np.eye(1, noise, noise - 1)[0])
    mean, covariance = np.array(mean), np.array(rows) @ np.array(rows).T
    # the forward process given x0: Cov(x_s, x_t) = alpha_t / alpha_s sigma_s^2
    kept = lambda i, j: a[i] / a[j] if i < j else 1.0
    q_covariance = np.array(
        [[kept(min(i, j), max(i, j)) * sd[max(i, j)] ** 2 for j in range(len(a))] for i in range(len(a))]
    )
    point = np.append(a * x0, x0)
    full = np.zeros_like(covariance)
    full[:-1, :-1] = q_covariance
    expected = multivariate_normal(mean, covariance).logpdf(point) - np.trace(np.linalg.solve(covariance, full)) / 2
    entropy = np.linalg.slogdet(2 * np.pi * np.e * q_covariance)[1] / 2
    return -expected - entropy, -norm(mean[-1], np.sqrt(covariance[-1, -1])).logpdf(x0)


def fractions(process, grid):
    """Ways to say the variance, in the order of `step_variances`."""
    return [np.zeros(len(grid) - 1), np.ones(len(grid) - 1), best_fractions(process, grid)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PROCESSES)
def test_the_bound_is_that_of_the_joint_gaussian(name):
    """For both fixed variances and the best one, above -log p(x0) by the KL of whole paths."""
    process, x0 = PROCESSES[name], 0.9
    grid = np.asarray(grids.uniform(process, 6, dtype=jnp.float64))
    for kind, shares in enumerate(fractions(process, grid)):
        got = sum(bound_terms(process, x0, grid, shares))
        bound, exact = dense_bound(process, x0, grid, kind)
        np.testing.assert_allclose(got, bound, rtol=1e-9)
        assert bound > exact
    plain = bound_terms(process, x0, grid, shares, learned=False)
    np.testing.assert_allclose(sum(plain), dense_bound(process, x0, grid, 0)[0], rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PROCESSES)
def test_the_best_learned_variance_beats_both_fixed_ones(name):
    """Averaged over the data, it leaves the entropy and what the prior and the decoder's variance miss."""
    process = PROCESSES[name]
    grid = np.asarray(grids.uniform(process, 6, dtype=jnp.float64))
    shares = best_fractions(process, grid)
    assert (shares > 0).all() and (name == "flow" or (shares < 1).all())  # where alpha falls, beta is no bound
    data = MEAN + np.sqrt(VARIANCE) * NODES
    totals = [
        WEIGHTS @ np.array([sum(bound_terms(process, x0, grid, shares)) for x0 in data])
        for shares in fractions(process, grid)
    ]
    (a, sd), (a1, sd1) = moments(process, grid[0]), moments(process, grid[-1])
    entropy = np.log(2 * np.pi * np.e * VARIANCE) / 2
    marginal = (a**2 * VARIANCE + sd**2) / sd**2
    prior = (marginal + (a * MEAN / sd) ** 2 - 1 - np.log(marginal)) / 2
    left = VARIANCE / (a1**2 * VARIANCE + sd1**2)  # Var(x0 | x_1) / sigma_1^2
    decoder = (left - 1 - np.log(left)) / 2
    np.testing.assert_allclose(totals[2], entropy + prior + decoder, rtol=1e-9)
    assert totals[2] < min(totals[:2])


@pytest.mark.usefixtures("x64")
def test_draws_have_the_expectation_as_their_mean():
    """Each term within four standard errors, and row b from its key alone."""
    process, x0, n = PROCESSES["vp"], 0.9, 4000
    grid = np.asarray(grids.uniform(process, 6, dtype=jnp.float64))
    denoise = with_variance(target().denoiser(process), 1.0)
    run = jax.jit(
        lambda keys, data: variational_bound(keys, denoise, process, data, jnp.asarray(grid), decoder="gaussian")
    )
    data = jnp.full((n, 1), x0)
    got = run(rng.per_example(jax.random.key(0), jnp.arange(n)), data)
    prior, kl, last = bound_terms(process, x0, grid, np.ones(5))
    np.testing.assert_allclose(got.prior, np.full(n, prior), rtol=1e-12)
    for values, expected in ((got.diffusion, kl), (got.reconstruction, last)):
        values = np.asarray(values)
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(n)
    np.testing.assert_allclose(got.nats, got.prior + got.diffusion + got.reconstruction)
    np.testing.assert_allclose(got.bits_per_dim(3), np.log2(np.exp(got.nats)) / 3)
    assert abs(np.corrcoef(got.diffusion, got.reconstruction)[0, 1]) < 4 / np.sqrt(n)
    alone = rng.per_example(jax.random.key(0), jnp.array([17, 5]))
    np.testing.assert_allclose(run(alone, data[:2]).nats, got.nats[jnp.array([17, 5])], rtol=1e-9)


def diffusion_integral(process, x0):
    """The continuous diffusion term in closed form but for one integral over the signal-to-noise ratio."""
    (a1, sd1), (a, sd) = (moments(process, end) for end in process.time_span)
    error = lambda r: ((MEAN - x0) ** 2 + VARIANCE**2 * r) / (1 + VARIANCE * r) ** 2
    return quad(error, (a / sd) ** 2, (a1 / sd1) ** 2, epsabs=1e-12, epsrel=1e-10, limit=200)[0] / 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name, times", [("vp", LogUniformTime()), ("flow", UniformTime()), ("edm", UniformTime())])
def test_the_continuous_bound_is_the_integral(name, times):
    """Each term within four standard errors."""
    process, x0, n = PROCESSES[name], 0.9, 500
    run = lambda keys, data: continuous_bound(
        keys, target().denoiser(process), process, data, times, 16, decoder="gaussian"
    )
    data = jnp.full((n, 1), x0)
    got = jax.jit(run)(rng.per_example(jax.random.key(1), jnp.arange(n)), data)
    grid = np.asarray(grids.uniform(process, 6, dtype=jnp.float64))
    prior, _, last = bound_terms(process, x0, grid, np.zeros(5), learned=False)
    np.testing.assert_allclose(got.prior, np.full(n, prior), rtol=1e-9)
    for values, expected in ((got.diffusion, diffusion_integral(process, x0)), (got.reconstruction, last)):
        values = np.asarray(values)
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(n)


@pytest.mark.usefixtures("x64")
def test_the_continuous_bound_is_the_limit_of_many_steps():
    """From above, at first order in their length: twice the steps, half of the difference."""
    process, x0 = PROCESSES["vp"], 0.9
    exact, gaps = diffusion_integral(process, x0), []
    for steps in (500, 1000):
        grid = np.asarray(grids.log_snr(process, steps + 1, dtype=jnp.float64))
        gaps.append(bound_terms(process, x0, grid, np.zeros(steps), learned=False)[1] - exact)
    assert 0 < gaps[1] < 0.01 * exact
    np.testing.assert_allclose(gaps[0] / gaps[1], 2, rtol=0.02)


@pytest.mark.usefixtures("x64")
def test_the_schedule_matters_at_its_ends_alone():
    """The same quantiles of the log-SNR and the same noise give the same bound under another process."""
    vp = PROCESSES["vp"]
    levels = [float(vp.sigma(end) / vp.alpha(end)) for end in vp.time_span]
    edm = EDM(sigma_min=levels[0], sigma_max=levels[1])
    keys, data = rng.per_example(jax.random.key(1), jnp.arange(8)), jnp.linspace(-1.0, 1.0, 8)[:, None]
    run = lambda process: continuous_bound(
        keys, target().denoiser(process), process, data, LogUniformTime(), 4, decoder="gaussian"
    )
    got, other = jax.jit(run)(vp), jax.jit(run)(edm)
    np.testing.assert_allclose(got.diffusion, other.diffusion, rtol=1e-6)
    np.testing.assert_allclose(got.prior, other.prior, rtol=1e-9)
    with pytest.raises(ValueError, match=r"times must have a density, got GridTime\(steps=3\)"):
        continuous_bound(keys, target().denoiser(vp), vp, data, GridTime(steps=3), 4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_gradients_flow_to_the_data_the_network_and_a_learned_schedule(kind):
    """Along one direction of all of them, against central differences; the same draws on both sides."""
    process = linear_gamma(gamma_min=-4.0, gamma_max=3.0, units=2, t_min=0.01)
    process = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), process)
    keys, data = rng.per_example(jax.random.key(1), jnp.arange(4)), jnp.linspace(-1.0, 0.8, 4)[:, None]

    def total(process, data, slope):
        def denoise(x, t):
            raw = jnp.concatenate([slope * x, jnp.sin(slope * x)], axis=-1)
            return LearnedVariance(mean=X0()).prediction(process, raw, x, t)

        if kind == "discrete":
            grid = grids.uniform(process, 4, dtype=jnp.float64)
            return variational_bound(keys, denoise, process, data, grid, decoder="gaussian").nats.sum()
        return continuous_bound(keys, denoise, process, data, UniformTime(), 3, decoder="gaussian").nats.sum()

    point = (process, data, jnp.array(0.6))
    direction = jax.tree.map(lambda leaf: jnp.asarray(np.cos(1 + np.arange(leaf.size)).reshape(leaf.shape)), point)
    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    gradient = both(*point)[1]
    parts = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
    assert all(abs(part) > 1e-4 for part in jax.tree.leaves(parts))
    at = lambda step: both(*jax.tree.map(lambda leaf, d: leaf + step * d, point, direction))[0]
    np.testing.assert_allclose(sum(jax.tree.leaves(parts)), (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-6)


LEVELS = np.arange(256) / 127.5 - 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_levels_of_a_pixel_share_the_whole_mass(dtype):
    """For means inside, between and far outside of the levels, and from narrow to wide."""
    mean, sigma = np.meshgrid([-3.0, -1.0, -0.13, 0.0, 0.5 / 255, 0.998, 1.7], [2e-3, 0.02, 0.3, 2.0])
    cells = (jnp.asarray(part[..., None], dtype) for part in (mean, sigma))
    got = np.asarray(discretized_log_likelihood(jnp.asarray(LEVELS, dtype), *cells))
    assert got.dtype == dtype and np.isfinite(got).all() and (got <= 1e-6).all()
    digits = 1e-10 if dtype == np.float64 else 2e-4
    np.testing.assert_allclose(np.exp(got.astype(float)).sum(-1), np.ones_like(mean), rtol=digits)
    np.testing.assert_allclose(got[:, 3], got[:, 3, ::-1], rtol=100 * digits, atol=digits)


@pytest.mark.usefixtures("x64")
def test_the_mass_of_a_level_is_that_of_its_interval():
    """Also where it is below the least number: the density over the interval, scaled by its greatest value."""
    level, low, high = LEVELS[140], LEVELS[140] - 1 / 255, LEVELS[140] + 1 / 255
    for mean, sigma in [(0.1, 0.02), (0.12, 0.002), (-0.9, 0.01), (0.99, 0.01)]:
        peak = min(max(mean, low), high)
        log_density = lambda x, mean=mean, sigma=sigma: norm(mean, sigma).logpdf(x)
        scaled = quad(lambda x, p=peak, f=log_density: np.exp(f(x) - f(p)), low, high, epsabs=0, epsrel=1e-10)[0]
        got = discretized_log_likelihood(jnp.array(level), jnp.array(mean), jnp.array(sigma))
        np.testing.assert_allclose(got, np.log(scaled) + log_density(peak), rtol=1e-8)
        slope = jax.grad(discretized_log_likelihood, argnums=1)(jnp.array(level), jnp.array(mean), jnp.array(sigma))
        assert jnp.isfinite(slope) and jnp.sign(slope) == np.sign(level - mean)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["flow", "edm"])
def test_the_loss_has_the_bound_as_its_mean_over_the_chain(name):
    """Per value; also of a network with a learned variance."""
    process, x0, steps, n = PROCESSES[name], 0.9, 6, len(NODES)
    grid = np.asarray(grids.uniform(process, steps, dtype=jnp.float64))
    quantiles = jnp.asarray((np.arange(steps) + 0.5) / steps)
    t = jnp.repeat(GridTime(steps=steps).quantile(quantiles, process), n)
    eps = jnp.asarray(np.tile(NODES, steps))[:, None]
    data = jnp.full_like(eps, x0)
    shares = best_fractions(process, grid)
    predict = with_variance(target().denoiser(process), jnp.repeat(jnp.append(shares, 0.0)[::-1], n))

    @jax.jit
    def losses(data, eps):  # of an example of one value, and of one that holds it twice
        one = predict(process.perturb(data, eps, t), t), Prediction(data, eps)
        two = jax.tree.map(lambda value: jnp.concatenate([value, value], axis=1), one)
        return [VariationalLoss(steps=steps, decoder="gaussian")(process, *pair, t) for pair in (one, two)]

    once, twice = losses(data, eps)
    mean = np.mean(np.asarray(once).reshape(steps, n) @ WEIGHTS)
    np.testing.assert_allclose(mean, sum(bound_terms(process, x0, grid, shares)), rtol=1e-9)
    np.testing.assert_allclose(twice, once, rtol=1e-9)


def test_the_hybrid_loss_moves_the_mean_by_the_simple_loss_alone():
    """In float32, with the decoder of images, at all times of EDM's span: everything stays finite."""
    process, steps = EDM(), 5
    t = GridTime(steps=steps).quantile((jnp.arange(5) + 0.5) / 5, process)
    x0, eps = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 5, 3)), jnp.float32)
    x = process.perturb(x0, eps, t)
    truth, hybrid = Prediction(x0, eps), HybridLoss(steps=steps, weight=0.01)

    def both(raw):
        prediction = LearnedVariance(mean=Eps()).prediction(process, raw, x, t)
        bound = VariationalLoss(steps=steps)(process, prediction, truth, t).sum()
        return hybrid(process, prediction, truth, t).sum(), SimpleLoss()(process, prediction, truth, t).sum(), bound

    raw = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)
    values, gradients = jax.jit(lambda raw: (both(raw), jax.jacrev(both)(raw)))(raw)
    np.testing.assert_allclose(values[0], values[1] + 0.01 * values[2], rtol=1e-5)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)
    (mean, variance), (simple, none), (_, bound) = (jnp.split(gradient, 2, axis=1) for gradient in gradients)
    np.testing.assert_allclose(mean, simple, rtol=1e-6)
    np.testing.assert_allclose(variance, 0.01 * bound, rtol=1e-5)
    assert not none.any() and jnp.abs(variance[1:]).min() > 0


def test_losses_of_a_chain_refuse_other_times_and_parameterizations():
    chain = GridTime(steps=10)
    VariationalLoss(steps=10).check(Eps(), chain)
    HybridLoss(steps=10).check(LearnedVariance(), chain)
    for loss, parameterization, times, message in [
        (
            VariationalLoss(steps=10),
            Eps(),
            UniformTime(),
            r"VariationalLoss with steps=10 needs times GridTime\(steps=10\)",
        ),
        (
            HybridLoss(steps=10),
            LearnedVariance(),
            GridTime(steps=9),
            r"HybridLoss with steps=10 .* got GridTime\(steps=9\)",
        ),
        (HybridLoss(steps=10), Eps(), chain, r"HybridLoss needs the parameterization LearnedVariance, got Eps\(\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            loss.check(parameterization, times)
    for make, message in [
        (lambda: VariationalLoss(steps=1), "VariationalLoss needs steps >= 2, got 1"),
        (lambda: HybridLoss(decoder="other"), "decoder must be 'discretized' or 'gaussian', got 'other'"),
        (lambda: HybridLoss(weight=0.0), r"HybridLoss needs weight > 0, got 0\.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
