"""The oracles against SciPy's densities, quadrature, Bayes' rule by draws and an ODE solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.special import ive
from scipy.stats import multivariate_normal, norm

from jdiff import oracles
from tests.table import PROCESSES, TIMES, anisotropic, two_modes

pytestmark = pytest.mark.usefixtures("x64")

CURVE = np.stack([np.linspace(-1, 1, 40), np.linspace(-1, 1, 40) ** 2], axis=-1)


def curve():
    return oracles.points(CURVE, 0.15)


def circle():
    return oracles.UniformRing(radius=0.8, std=0.1)


def labelled():
    """Four components of three classes, the second class of two components, far from Gaussian."""
    means = jnp.array([[-0.8, 0.0], [0.7, 0.4], [0.2, -0.9], [0.0, 0.1]])
    covariances = jnp.array([[0.3, 0.1], [0.1, 0.2]]) * jnp.array([1.0, 0.5, 0.3, 0.7])[:, None, None]
    return oracles.classes(oracles.mixture(jnp.array([0.3, 0.2, 0.4, 0.1]), means, covariances), np.array([0, 1, 1, 2]))


# Every oracle in the plane, by name.
ORACLES = {"gaussian": anisotropic, "mixture": two_modes, "points": curve, "circle": circle}


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


@pytest.mark.parametrize("make", ORACLES.values(), ids=ORACLES)
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


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("make", ORACLES.values(), ids=ORACLES)
def test_prediction_and_density_tell_the_same_score(make, name):
    """grad log p_t is the prediction's score, the two parts are consistent with x, and t may differ by example."""
    process, target, t = PROCESSES[name], make(), jnp.array(TIMES[name])
    x = jnp.array(np.random.default_rng(3).normal(size=(3, 2))) * process.sigma(t)[:, None]
    got = target.predict(process, x, t)
    score = jax.grad(lambda x: target.log_density(process, x, t).sum())(x)
    np.testing.assert_allclose(got.score(process, t), score, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(process.perturb(got.x0, got.eps, t), x, rtol=1e-10)


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_points_are_a_mixture_of_their_own(name):
    process, t = PROCESSES[name], TIMES[name][1]
    same = oracles.mixture(jnp.ones(40), jnp.array(CURVE), jnp.tile(0.15**2 * jnp.eye(2), (40, 1, 1)))
    x = jnp.array(np.random.default_rng(4).normal(size=(5, 2)))
    np.testing.assert_allclose(curve().log_density(process, x, t), same.log_density(process, x, t), rtol=1e-10)
    np.testing.assert_allclose(curve().predict(process, x, t).x0, same.predict(process, x, t).x0, rtol=1e-9)


def test_points_without_noise_keep_their_digits_in_float32():
    """Of 20,000 points, the nearest at the least noise, where products of coordinates would not tell them apart."""
    process = PROCESSES["edm"]
    target = oracles.swiss_roll(20_000, std=0.0)
    rows = jnp.array([0, 777, 19_999])
    x = target.centres[rows] + jnp.float32(1e-5)
    got = target.predict(process, x, jnp.float32(2e-5))
    assert got.x0.dtype == jnp.float32
    squares = ((np.float64(x)[:, None] - np.float64(target.centres)) ** 2).sum(-1)
    weights = np.exp(-(squares - squares.min(-1, keepdims=True)) / (2 * np.float64(np.float32(2e-5)) ** 2))
    mean = weights / weights.sum(-1, keepdims=True) @ np.float64(target.centres)
    np.testing.assert_allclose(got.x0, mean, atol=2e-7)


def test_swiss_roll_is_a_spiral():
    """Its radius grows with its angle, from 1/3 to 1 over three half turns, in steps of nearly one length."""
    centres = np.asarray(oracles.swiss_roll(500, dtype=jnp.float64).centres)
    radius, steps = np.hypot(*centres.T), np.hypot(*np.diff(centres, axis=0).T)
    np.testing.assert_allclose(radius[[0, -1]], [1 / 3, 1], rtol=1e-12)
    turned = np.unwrap(np.arctan2(centres[:, 1], centres[:, 0]))
    np.testing.assert_allclose(np.ptp(turned), 3 * np.pi, rtol=1e-12)
    np.testing.assert_allclose(radius / (turned - turned[0] + 1.5 * np.pi), radius[-1] / (4.5 * np.pi), rtol=1e-9)
    assert steps.max() < 1.03 * steps.min()


@pytest.mark.parametrize("name", PROCESSES)
def test_uniform_ring_by_quadrature_over_the_angle(name):
    """Also at the origin, and where the noise is small beside the circle (arguments of 1e4 and more)."""
    process, target = PROCESSES[name], circle()
    angle = np.linspace(0, 2 * np.pi, 20_001)[:-1]  # the trapezium rule on a period converges exponentially
    centres = 0.8 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    x = np.array([[0.0, 0.0], [0.7, -0.3], [-0.2, 0.1], [1.5, 1.0]])
    for t, tight in [(TIMES[name][0], 0.0), (TIMES[name][1], 0.1), (TIMES[name][2], 0.1), (TIMES[name][0], 0.01)]:
        target = oracles.UniformRing(radius=0.8, std=tight)
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        variance = (alpha * tight) ** 2 + sigma**2
        exponent = -((x[:, None] - alpha * centres) ** 2).sum(-1) / (2 * variance)
        top = exponent.max(-1, keepdims=True)
        weights = np.exp(exponent - top)
        density = np.log(weights.mean(-1)) + top[:, 0] - np.log(2 * np.pi * variance)
        centre = weights @ centres / weights.sum(-1, keepdims=True)
        x0 = centre + alpha * tight**2 / variance * (x - alpha * centre)
        np.testing.assert_allclose(target.log_density(process, jnp.array(x), t), density, rtol=1e-9)
        np.testing.assert_allclose(target.predict(process, jnp.array(x), t).x0, x0, rtol=1e-9, atol=1e-12)


def test_uniform_ring_where_bessel_functions_overflow():
    """Arguments of 1e-6 to 1e8, where I0 itself overflows beyond 700: the radial mean and its slope, in both dtypes.

    The slope of A = I1 / I0 is 1 - A / k - A^2, which cancels; by SciPy it is taken as a difference where it does not
    matter. Above 200 its error stays below rounding of the tangential slope A / k.
    """
    process, target, sigma = PROCESSES["ve"], oracles.UniformRing(), 0.01
    k = np.array([1e-6, 0.3, 10.0, 150.0, 199.0, 201.0, 1e3, 1e6, 1e8])
    a = np.where(k < 1e6, ive(1, k) / ive(0, k), 1 - 1 / (2 * k) - 1 / (8 * k**2))
    slope = np.where(k < 300, 1 - a / k - a**2, (1 + 1 / (2 * k) + 3 / (4 * k**2)) / (2 * k**2))
    mean = lambda r, t: target.predict(process, jnp.stack([r, 0 * r])[None], t).x0[0, 0]
    both = jax.jit(jax.vmap(jax.value_and_grad(mean), in_axes=(0, None)))
    for dtype, value, rounding in [(jnp.float64, 1e-12, 1e-15), (jnp.float32, 3e-7, 3e-7)]:
        got, rise = both(jnp.array(k * sigma**2, dtype), jnp.asarray(sigma, dtype))
        np.testing.assert_allclose(got, a, rtol=value)
        error = np.abs(np.float64(rise) * sigma**2 - slope)
        np.testing.assert_array_less(error, 1e-7 * slope + rounding * np.where(k > 200, 1 / k, 1))
    assert np.isfinite(target.log_density(process, jnp.array([[30.0, 40.0]]), 1e-3)).all()


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_class_posterior_is_bayes_rule(name):
    """p(y | x_t) from the classes' own densities, and the predictors as what they are: those of each class."""
    process, target, t = PROCESSES[name], labelled(), TIMES[name][1]
    x = jnp.array(np.random.default_rng(5).normal(size=(4, 2)))
    prior = np.array([0.3, 0.6, 0.1])
    joint = prior * np.stack([np.exp(target.given(y).log_density(process, x, t)) for y in range(3)], axis=-1)
    posterior = joint / joint.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(target.log_posterior(process, x, t)), posterior, rtol=1e-9)
    got = target.predictor(process)(x, t, {"label": jnp.array([0, 1, 2, 3])})
    alone = [*(target.given(y) for y in range(3)), target.mixture]
    for row, single in enumerate(alone):
        expected = single.predict(process, x[row : row + 1], t)
        np.testing.assert_allclose(got.x0[row], expected.x0[0], rtol=1e-9)
        np.testing.assert_allclose(got.eps[row], expected.eps[0], rtol=1e-9)
    # The whole is the posterior's mean of its classes.
    each = [target.given(y).predict(process, x, t).x0 for y in range(3)]
    whole = target.mixture.predict(process, x, t).x0
    np.testing.assert_allclose(np.einsum("by,ybd->bd", posterior, each), whole, rtol=1e-9)


def test_a_class_that_is_not_there_gives_nan():
    predict = labelled().predictor(PROCESSES["vp"])
    got = predict(jnp.zeros((3, 2)), 0.3, {"label": jnp.array([-1, 4, 3])})
    np.testing.assert_array_equal(np.isnan(got.x0).any(-1), [True, True, False])


def test_inpainting_is_the_density_along_a_line():
    """p(x0 | second coordinate): the joint density on that line, normalized by quadrature; and its posterior means."""
    target, seen = two_modes(), 0.3
    given = oracles.conditioned(target, [1], jnp.array([seen]))
    joint = lambda z: np.exp(float(target.log_density(PROCESSES["ve"], jnp.array([[z, seen]]), 0.0)[0]))
    line = np.linspace(-6, 6, 1201)
    density = np.exp(target.log_density(PROCESSES["ve"], jnp.stack([jnp.array(line), jnp.full(1201, seen)], -1), 0.0))
    np.testing.assert_allclose(joint(line[500]), density[500], rtol=1e-12)
    weight = density / density.sum()
    mean, covariance = given.moments()
    np.testing.assert_allclose(mean, [weight @ line, seen], rtol=1e-7)
    np.testing.assert_allclose(covariance, np.diag([weight @ line**2 - (weight @ line) ** 2, 0]), rtol=1e-7, atol=1e-12)
    np.testing.assert_array_equal(given.sample(jax.random.key(0), 5)[:, 1], np.full(5, seen))
    for name in ("vp", "flow"):
        process, t = PROCESSES[name], TIMES[name][1]
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x = np.array([[0.4, -0.7]])
        posterior = weight * norm.pdf(x[0, 0], alpha * line, sigma)
        got = given.predict(process, jnp.array(x), t)
        np.testing.assert_allclose(got.x0, [[posterior @ line / posterior.sum(), seen]], rtol=1e-7)


def test_product_of_gaussians():
    """Its log density is the weighted sum of theirs but for a constant, also with a negative power."""
    other = oracles.gaussian(jnp.array([1.0, 0.0]), jnp.array([[0.5, -0.1], [-0.1, 0.6]]))
    wide = oracles.gaussian(jnp.array([0.2, 0.2]), 3 * jnp.eye(2))
    powers = np.array([1.0, 1.5, -0.8])
    got = oracles.product([anisotropic(), other, wide], powers)
    x = jnp.array(np.random.default_rng(6).normal(size=(7, 2)))
    log = lambda target: target.log_density(PROCESSES["ve"], x, 0.0)
    rest = log(got) - sum(w * log(target) for w, target in zip(powers, [anisotropic(), other, wide], strict=True))
    np.testing.assert_allclose(rest, rest[0], rtol=1e-10)


def test_what_cannot_be_made_is_named():
    with pytest.raises(ValueError, match=r"negative eigenvalues, got -1"):
        oracles.gaussian(jnp.zeros(2), jnp.diag(jnp.array([1.0, -1.0])))
    with pytest.raises(ValueError, match=r"shape \[N, D\] with N >= 1, got \(3,\)"):
        oracles.points(jnp.zeros(3), 0.1)
    with pytest.raises(ValueError, match=r"std must not be negative, got -0.1"):
        oracles.points(jnp.zeros((3, 2)), -0.1)
    with pytest.raises(ValueError, match=r"radius > 0, got 0"):
        oracles.UniformRing(radius=0)
    with pytest.raises(ValueError, match=r"each class of 0..2, got \[0, 2\]"):
        oracles.classes(two_modes(), np.array([0, 2]))
    with pytest.raises(ValueError, match=r"integers of shape \(2,\), got float64 of shape \(3,\)"):
        oracles.classes(two_modes(), np.zeros(3))
    with pytest.raises(ValueError, match=r"label must be in 0..2, got 3"):
        labelled().given(3)
    with pytest.raises(ValueError, match=r"different indices in 0..1, got \[2\]"):
        oracles.conditioned(two_modes(), [2], jnp.zeros(1))
    with pytest.raises(ValueError, match=r"values must have shape \(1,\).*got \(2,\)"):
        oracles.conditioned(two_modes(), [0], jnp.zeros(2))
    with pytest.raises(ValueError, match="cannot be normalized"):
        oracles.product([anisotropic(), anisotropic()], jnp.array([1.0, -2.0]))
    with pytest.raises(ValueError, match=r"got \[2\] components and powers of shape \(1,\)"):
        oracles.product([two_modes()], jnp.ones(1))
