"""Log-densities by the probability-flow ODE against closed forms, enumeration and finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from jdiff import likelihood, oracles
from jdiff.likelihood import Adaptive
from jdiff.prediction import Prediction
from tests.table import PROCESSES, two_modes

pytestmark = pytest.mark.usefixtures("x64")


def start(target, process, n, seed=0):
    """n draws of x at t_min."""
    x0_key, eps_key = jax.random.split(jax.random.key(seed))
    x0 = target.sample(x0_key, n)
    return process.perturb(x0, jax.random.normal(eps_key, x0.shape, x0.dtype), process.time_span[0])


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process(name):
    """The mixture's density in 40 steps to 1e-5 nats, and the way back to the data with the opposite change."""
    process, target = PROCESSES[name], two_modes()
    first, last = process.time_span
    x, times = start(target, process, 16), likelihood.grid(process, 41, dtype=jnp.float64)
    np.testing.assert_allclose(times[jnp.array([0, -1])], process.time_span, rtol=1e-12)
    run = jax.jit(lambda x, times: likelihood.transport(x, target.denoiser(process), process, times))
    there = run(x, times)
    got = there.change + target.log_density(process, there.x, last)
    np.testing.assert_allclose(got, target.log_density(process, x, first), atol=1e-5)
    np.testing.assert_array_equal(there.standard_error, np.zeros(16))
    back = run(there.x, times[::-1])
    np.testing.assert_allclose(back.x, x, atol=1e-5)
    np.testing.assert_allclose(back.change, -there.change, atol=2e-5)


def test_ring_to_1e_5_nats_in_80_steps():
    """The eight-mode ring, EDM from 80 to 0.002, float64, 512 draws, given the ring's own density at sigma = 80.

    Measured: mean error 3.5e-6 at 40 steps and 1.8e-7 at 80, where the worst of 2048 draws is off by 6.3e-6. (In
    float32 at 80 steps, mean 1.8e-6.) With the Gaussian prior the mean error is 6.1e-5, which is what that prior
    is wrong by at sigma = 80 and no solver can mend.
    """
    process, ring = PROCESSES["edm"], oracles.ring(8, dtype=jnp.float64)
    x, times = start(ring, process, 512), likelihood.grid(process, 81, dtype=jnp.float64)
    own = lambda x: ring.log_density(process, x, 80.0)

    @jax.jit
    def run(x, times):
        given = likelihood.log_density(x, ring.denoiser(process), process, times, terminal=own)
        prior = likelihood.log_density(x, ring.denoiser(process), process, times)
        return given, prior

    given, prior = run(x, times)
    exact = ring.log_density(process, x, 0.002)
    assert np.abs(given.log_density - exact).max() < 1e-5
    assert np.abs(given.log_density - exact).mean() < 5e-7
    wrong_by = norm.logpdf(given.latent, scale=80).sum(-1) - own(given.latent)
    np.testing.assert_allclose(prior.log_density - exact, wrong_by, atol=1e-5)
    assert 5e-5 < np.abs(prior.log_density - exact).mean() < 7e-5


def test_adaptive_and_its_evaluations():
    """To a zero signal-to-noise ratio: the error follows the tolerance, which is traced; evaluations as counted.

    Measured on 64 draws of the mixture: worst error below 1e-5 at a tolerance of 1e-5 and 1e-8 at 1e-8.
    """
    process, target, calls, compiled = PROCESSES["flow"], two_modes(), [], []
    first, last = process.time_span
    x = start(target, process, 64)

    def denoise(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return target.predict(process, x, t)

    @jax.jit
    def run(x, tolerance):
        compiled.append(x)
        times = Adaptive(start=first, end=last, rtol=tolerance, atol=tolerance)
        return likelihood.log_density(x, denoise, process, times)

    exact, nfe = target.log_density(process, x, first), []
    for tolerance in (1e-5, 1e-8):
        calls.clear()
        got = run(x, tolerance)
        jax.effects_barrier()
        assert got.nfe == len(calls)
        nfe.append(len(calls))
        assert np.abs(got.log_density - exact).max() < 3 * tolerance
    assert 50 < nfe[0] < 120 < nfe[1] < 250
    assert len(compiled) == 1
    fixed = likelihood.transport(x, denoise, process, jnp.linspace(first, last, 3))
    calls.clear()
    jax.jit(lambda x: likelihood.transport(x, denoise, process, jnp.linspace(first, last, 3)).x)(x)
    jax.effects_barrier()
    assert fixed.nfe == len(calls) == 8


def test_adaptive_gives_up_aloud():
    process, target = PROCESSES["edm"], two_modes()
    times = Adaptive(start=0.002, end=80.0, rtol=1e-8, atol=1e-8, max_steps=8)
    with pytest.raises(RuntimeError, match="max"):
        likelihood.log_density(jnp.zeros((1, 2)), target.denoiser(process), process, times)


def test_hutchinson_tells_its_own_error():
    """Over 256 samples of 64 probes, against the exact divergence on the same grid: errors in their standard errors.

    Their mean square is 1 within four of its standard errors, sqrt(2 / 256), their mean 0 within 4 / 16, and at most 6
    (Poisson with mean 0.7: 1e-5) are beyond three. For both kinds of probes.
    """
    process, target = PROCESSES["vp"], two_modes()
    x, times = start(target, process, 256), likelihood.grid(process, 13, dtype=jnp.float64)
    keys = jax.random.split(jax.random.key(5), 256)
    run = jax.jit(lambda probes: likelihood.log_density(x, target.denoiser(process), process, times, probes=probes))
    exact = run(None)
    for draw in (jax.random.rademacher, jax.random.normal):
        probes = likelihood.probes(keys, x, 64, draw)
        got = run(probes)
        np.testing.assert_allclose(got.latent, exact.latent, rtol=1e-10)
        z = (got.log_density - exact.log_density) / got.standard_error
        assert abs((z**2).mean() - 1) < 4 * np.sqrt(2 / 256)
        assert abs(z.mean()) < 4 / 16
        assert (np.abs(z) > 3).sum() <= 6
        # A sample's probes are its own, whatever the batch.
        np.testing.assert_array_equal(likelihood.probes(keys[7:9], x[7:9], 64, draw), probes[:, 7:9])


def test_one_probe_has_no_known_error_and_many_average():
    process, target = PROCESSES["flow"], two_modes()
    x, times = start(target, process, 2), likelihood.grid(process, 5, dtype=jnp.float64)
    probes = likelihood.probes(jax.random.split(jax.random.key(0), 2), x, 3)
    run = jax.jit(lambda probes: likelihood.transport(x, target.denoiser(process), process, times, probes=probes))
    single, together = [run(probes[i : i + 1]) for i in range(3)], run(probes)
    assert np.isnan(single[0].standard_error).all()
    changes = np.stack([one.change for one in single])
    np.testing.assert_allclose(together.change, changes.mean(0), rtol=1e-12)
    np.testing.assert_allclose(together.standard_error, changes.std(0, ddof=1) / np.sqrt(3), rtol=1e-9)


@pytest.mark.parametrize("how", ["exact", "hutchinson", "adaptive"])
def test_gradients(how):
    """Of the mean log-density in the means of the denoiser and in x, against central differences."""
    process, target = PROCESSES["vp"], two_modes()
    x = start(target, process, 3)
    times = likelihood.grid(process, 9, dtype=jnp.float64)
    if how == "adaptive":
        times = Adaptive(start=1e-3, end=1.0, rtol=1e-9, atol=1e-9)
    probes = likelihood.probes(jax.random.split(jax.random.key(0), 3), x, 1) if how == "hutchinson" else None

    @jax.jit
    def loss(means, x):
        denoise = dataclasses.replace(target, means=means).denoiser(process)
        return likelihood.log_density(x, denoise, process, times, probes=probes).log_density.mean()

    gradient = jax.grad(loss, argnums=(0, 1))(target.means, x)
    rng = np.random.default_rng(0)
    for towards in range(2):
        at = [target.means, x]
        way = jnp.array(rng.normal(size=at[towards].shape))
        moved = [[*at[:towards], at[towards] + step * way, *at[towards + 1 :]] for step in (1e-4, -1e-4)]
        difference = (loss(*moved[0]) - loss(*moved[1])) / 2e-4
        np.testing.assert_allclose(jnp.sum(gradient[towards] * way), difference, rtol=1e-5)


LEVELS = 16


def cells():
    """The mixture of one dimension, what its noised density is at EDM's t_min, and its cells' places and bits."""
    process = PROCESSES["edm"]
    target = oracles.mixture(np.array([0.4, 0.6]), np.array([[-0.5], [0.3]]), np.array([[[0.04]], [[0.01]]]))
    places, width = np.linspace(-1, 1, LEVELS), 2 / (LEVELS - 1)
    std = np.sqrt(np.array([0.04, 0.01]) + 0.002**2)
    mass = lambda z: 0.4 * norm.cdf(z, -0.5, std[0]) + 0.6 * norm.cdf(z, 0.3, std[1])
    return process, target, places, width, mass


def test_bits_of_a_discretized_mixture_match_enumeration():
    """With the best of all variational flows, every draw's bits are the cell's; so their mean is the entropy."""
    process, target, places, width, mass = cells()
    probability = mass(places + width / 2) - mass(places - width / 2)
    std = np.sqrt(np.array([0.04, 0.01]) + 0.002**2)
    cdf = lambda z: 0.4 * jax.scipy.stats.norm.cdf(z, -0.5, std[0]) + 0.6 * jax.scipy.stats.norm.cdf(z, 0.3, std[1])

    def inverse(eps, x):
        """The place in the cell at which the mixture has the share Phi(eps) of the cell's probability, by bisection."""
        low = x - width / 2
        share = (cdf(low + width) - cdf(low)) * jax.scipy.stats.norm.cdf(eps) + cdf(low)

        def halve(_, ends):
            middle = (ends[0] + ends[1]) / 2
            return jnp.where(cdf(middle) < share, middle, ends[0]), jnp.where(cdf(middle) < share, ends[1], middle)

        return jax.lax.fori_loop(0, 60, halve, (low, low + width))[0]

    def flow(eps, x):
        z, rise = jax.jvp(lambda eps: inverse_with_slope(eps, x), (eps,), (jnp.ones_like(eps),))
        return (z - x) / width + 0.5, jnp.log(rise / width)[:, 0]

    @jax.custom_jvp
    def inverse_with_slope(eps, x):
        return inverse(eps, x)

    @inverse_with_slope.defjvp
    def _(primals, tangents):
        z = inverse(*primals)
        inside = cdf(primals[1] + width / 2) - cdf(primals[1] - width / 2)
        density = jax.grad(lambda z: cdf(z).sum())(z)
        return z, inside * jax.scipy.stats.norm.pdf(primals[0]) / density * tangents[0]

    x = jnp.array(np.repeat(places, 8)[:, None])
    keys = jax.random.split(jax.random.key(2), len(x))
    times = likelihood.grid(process, 61, dtype=jnp.float64)
    own = lambda z: target.log_density(process, z, 80.0)

    @jax.jit
    def run(keys, x):
        drawn = likelihood.dequantize_variationally(keys, x, width, flow)
        got = likelihood.log_density(drawn.x, target.denoiser(process), process, times, terminal=own)
        return drawn, likelihood.bits_per_dim(got.log_density, drawn)

    drawn, bits = run(keys, x)
    assert (np.abs(drawn.x - x) <= width / 2).all()
    np.testing.assert_allclose(bits, np.repeat(-np.log2(probability), 8), atol=1e-4)
    entropy = -np.sum(probability * np.log2(probability))
    np.testing.assert_allclose(probability @ bits.reshape(LEVELS, 8), entropy, atol=1e-5)


def test_uniform_dequantization_of_pairs():
    """In two dimensions, the mean of p / q over draws is the cell's probability, within four standard errors (of 36
    cells). Bits a value are over both dimensions: on average the bound that Gauss-Legendre quadrature gives."""
    process, target, draws = PROCESSES["edm"], two_modes(), 400
    ticks = np.linspace(-1, 1, 6)
    places, width = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2), 0.4
    noise = 0.002**2 * np.eye(2)
    covariances = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]]) + noise
    parts = [
        w * multivariate_normal(m, c).cdf(places + width / 2, lower_limit=places - width / 2)
        for w, m, c in zip((0.3, 0.7), ([-0.8, 0.0], [0.7, 0.4]), covariances, strict=True)
    ]
    probability = np.sum(parts, axis=0)
    x = jnp.array(np.repeat(places, draws, axis=0))
    keys = jax.random.split(jax.random.key(3), len(x))
    drawn = likelihood.dequantize_uniformly(keys, x, width)
    log_p = target.log_density(process, drawn.x, 0.002)
    ratio = np.exp(log_p - drawn.log_q).reshape(-1, draws)
    error = ratio.std(1, ddof=1) / np.sqrt(draws)
    assert (np.abs(ratio.mean(1) - probability) < 4 * error).all()
    offset = np.asarray(drawn.x - x)
    assert np.abs(offset).max() <= width / 2
    np.testing.assert_allclose(offset.mean(0), 0, atol=4 * width / np.sqrt(12 * len(x)))
    bits = np.asarray(likelihood.bits_per_dim(log_p, drawn)).reshape(-1, draws)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    inner = np.stack(np.meshgrid(nodes, nodes), -1) * width / 2 + places[:, None, None]
    densities = zip((0.3, 0.7), ([-0.8, 0.0], [0.7, 0.4]), covariances, strict=True)
    density = sum(w * multivariate_normal(m, c).pdf(inner) for w, m, c in densities)
    expected = -np.einsum("i,j,pij->p", weights / 2, weights / 2, np.log2(width**2 * density)) / 2
    assert (np.abs(bits.mean(1) - expected) < 4 * bits.std(1) / np.sqrt(draws)).all()
    again = likelihood.dequantize_uniformly(keys[5:7], x[5:7], width)
    np.testing.assert_array_equal(again.x, drawn.x[5:7])


def test_logit_normal_is_a_flow():
    """Its log determinant is that of its Jacobian."""
    eps, shift = (jnp.array(np.random.default_rng(i).normal(size=(2, 3))) for i in range(2))
    unit, log_det = likelihood.logit_normal(eps, shift, 0.3 * shift)
    for row in range(2):
        at = lambda e, row=row: likelihood.logit_normal(e[None], shift[row], 0.3 * shift[row])[0][0]
        np.testing.assert_allclose(log_det[row], np.linalg.slogdet(jax.jacobian(at)(eps[row]))[1], rtol=1e-9)
    assert ((unit > 0) & (unit < 1)).all()


def test_bad_input_is_named():
    process, x, times = PROCESSES["edm"], jnp.zeros((2, 3)), jnp.array([0.1, 1.0])
    denoise = lambda x, t: Prediction(x, x)
    run = lambda x=x, times=times, **rest: likelihood.log_density(x, denoise, process, times, **rest)
    with pytest.raises(ValueError, match=r"x must have shape \[B, ...\].*got \(2,\)"):
        run(x=jnp.zeros(2))
    with pytest.raises(ValueError, match=r"times must have shape \[n\] with n >= 2, got \(1,\)"):
        run(times=times[:1])
    with pytest.raises(ValueError, match=r"all increase or all decrease, got \[0.1 1.  0.5\]"):
        run(times=jnp.array([0.1, 1.0, 0.5]))
    with pytest.raises(ValueError, match=r"probes must have shape \('P', 2, 3\) with P >= 1, got \(2, 3\)"):
        run(probes=x)
    with pytest.raises(ValueError, match=r"terminal must return shape \(2,\).*got \(2, 3\)"):
        run(terminal=lambda x: x)
    with pytest.raises(ValueError, match=r"predict the shape of its input, \(2, 3\), got \(2, 1\)"):
        likelihood.log_density(x, lambda x, t: Prediction(x[:, :1], x), process, times)
    with pytest.raises(ValueError, match=r"needs n >= 2 times, got 1"):
        likelihood.grid(process, 1)
    with pytest.raises(ValueError, match=r"knee must be positive, got 0"):
        likelihood.grid(process, 5, knee=0)
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"width must be positive, got 0"):
        likelihood.dequantize_uniformly(keys, x, 0.0)
    with pytest.raises(ValueError, match=r"flow must return shapes \(2, 3\) and \(2,\), got \(2, 3\) and \(2, 3\)"):
        likelihood.dequantize_variationally(keys, x, 0.1, lambda eps, x: (eps, eps))
