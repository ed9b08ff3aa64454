"""Parameterizations against their definitions and against exact predictions of known distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import oracles
from jdiff.prediction import (
    X0,
    EDMPreconditioning,
    Eps,
    LearnedVariance,
    Prediction,
    V,
    Velocity,
    predictor,
    reverse_log_variance,
)
from jdiff.processes import EDM, VP, RectifiedFlow
from tests.table import LEARNED_VARIANCE, NEED_SIGNAL, PARAMETERIZATIONS, PROCESSES, TIMES, two_modes

pytestmark = pytest.mark.usefixtures("x64")
EVERY = PARAMETERIZATIONS | LEARNED_VARIANCE


def raw_output(name, process, x0, eps, t):
    """What the perfect network of each parameterization returns, from the definition."""
    x = process.perturb(x0, eps, t)
    column = lambda value: jnp.reshape(value, (-1, 1))
    if name.startswith("learned_"):  # a second half of channels; which says nothing about the data
        return jnp.concatenate([raw_output(name.removeprefix("learned_"), process, x0, eps, t), jnp.sin(x)], axis=-1)
    alpha, sigma = column(process.alpha(t)), column(process.sigma(t))
    if name == "velocity":  # of the straight path through (x0, eps), by finite differences
        after, before = jnp.minimum((1 + 1e-6) * t, process.time_span[1]), (1 - 1e-6) * t
        alphas, sigmas = (method(jnp.stack([after, before])) for method in (process.alpha, process.sigma))
        return (column(alphas[0] - alphas[1]) * x0 + column(sigmas[0] - sigmas[1]) * eps) / column(after - before)
    if name == "edm":  # unit-variance target: residual of the posterior mean of N(0, 0.7^2) over its standard deviation
        gain = alpha * 0.7**2 / (alpha**2 * 0.7**2 + sigma**2)
        return (x0 - gain * x) / jnp.sqrt(0.7**2 * (1 - alpha * gain))
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -(x - alpha * x0) / sigma**2}[name]


@pytest.mark.parametrize("process_name", PROCESSES)
@pytest.mark.parametrize("name", EVERY)
def test_perfect_output_gives_data_and_noise(name, process_name):
    process, t = PROCESSES[process_name], jnp.array(TIMES[process_name])
    x0, eps = jnp.array(np.random.default_rng(1).normal(size=(2, 3, 4)))
    raw = raw_output(name, process, x0, eps, t)
    got = EVERY[name].prediction(process, raw, process.perturb(x0, eps, t), t)
    np.testing.assert_allclose(got.x0, x0, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.eps, eps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process_name", PROCESSES)
@pytest.mark.parametrize("name", EVERY)
def test_any_output_is_consistent_with_x(name, process_name):
    process, t = PROCESSES[process_name], jnp.array(TIMES[process_name])
    x = jnp.array(np.random.default_rng(2).normal(size=(3, 4)))
    raw = jnp.array(np.random.default_rng(3).normal(size=(3, EVERY[name].out_channels(4))))
    got = EVERY[name].prediction(process, raw, x, t)
    np.testing.assert_allclose(process.perturb(got.x0, got.eps, t), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process_name", PROCESSES)
def test_score_velocity_and_v_of_a_known_density(process_name):
    process, target = PROCESSES[process_name], two_modes()
    x = jnp.array(np.random.default_rng(3).normal(size=(5, 2)))
    for t in TIMES[process_name]:
        got = target.predict(process, x, t)
        score = jax.grad(lambda x, t=t: target.log_density(process, x, t).sum())(x)
        np.testing.assert_allclose(got.score(process, t), score, rtol=1e-9, atol=1e-9)
        # Song et al. 2021, eq. 13: the probability-flow ODE is f x - g^2/2 score.
        flow = process.drift(x, t) - process.diffusion(t) ** 2 / 2 * score
        np.testing.assert_allclose(got.velocity(process, t), flow, rtol=1e-8, atol=1e-8)
    t = TIMES[process_name][1]
    angle = jnp.arctan2(process.sigma(t), process.alpha(t))
    turned = process.perturb(got.x0, got.eps, t) / jnp.hypot(process.sigma(t), process.alpha(t))
    np.testing.assert_allclose(turned, jnp.cos(angle) * got.x0 + jnp.sin(angle) * got.eps, rtol=1e-9)
    # v is the derivative of that rotation by its angle (Salimans and Ho 2022), times its length.
    by_angle = jax.jvp(lambda a: jnp.cos(a) * got.x0 + jnp.sin(a) * got.eps, (angle,), (jnp.ones_like(angle),))[1]
    np.testing.assert_allclose(got.v(process, t) / jnp.hypot(process.sigma(t), process.alpha(t)), by_angle, rtol=1e-9)


@pytest.mark.parametrize("process_name", ["vp", "ve", "edm"])
def test_edm_preconditioning_starts_at_the_gaussian_answer(process_name):
    """A network that returns zero is the exact denoiser of N(0, sigma_data^2), and its input has unit variance."""
    process, t = PROCESSES[process_name], jnp.array(TIMES[process_name])
    parameterization = EDMPreconditioning(sigma_data=0.7)
    target = oracles.gaussian(jnp.zeros(2), 0.49 * jnp.eye(2))
    seen = []

    def network(x, noise_label, cond):
        seen.append((x, noise_label))
        return jnp.zeros_like(x)

    x = jnp.array(np.random.default_rng(4).normal(size=(3, 2)))
    got, exact = predictor(network, process, parameterization)(x, t, {}), target.predict(process, x, t)
    np.testing.assert_allclose(got.x0, exact.x0, rtol=1e-9)
    np.testing.assert_allclose(got.eps, exact.eps, rtol=1e-9)
    marginal = np.sqrt(np.asarray(process.alpha(t)) ** 2 * 0.49 + np.asarray(process.sigma(t)) ** 2)
    np.testing.assert_allclose(seen[0][0] * marginal[:, None], x, rtol=1e-9)
    np.testing.assert_allclose(seen[0][1], np.log(process.sigma(t) / process.alpha(t)) / 4, rtol=1e-9)


def test_others_see_the_plain_input_and_time():
    seen = []

    def network(x, noise_label, cond):
        seen.append((x, noise_label, cond))
        return x

    x = jnp.ones((3, 2))
    predictor(network, VP(), Eps())(x, 0.25, {"label": jnp.array(1)})
    np.testing.assert_array_equal(seen[0][0], x)
    np.testing.assert_array_equal(seen[0][1], [0.25] * 3)
    assert seen[0][2] == {"label": 1}


@pytest.mark.parametrize("name", EVERY)
def test_impossible_pairs_are_refused_when_built(name):
    network = lambda x, noise_label, cond: jnp.ones((*x.shape[:-1], EVERY[name].out_channels(x.shape[-1])))
    build = lambda: predictor(network, RectifiedFlow(), EVERY[name])
    if name in NEED_SIGNAL:
        with pytest.raises(ValueError, match=r"signal-to-noise ratio at t = 1\.0 is zero"):
            build()
        with pytest.raises(ValueError, match="is zero"):
            jax.jit(lambda x: predictor(network, RectifiedFlow(), EVERY[name])(x, 0.5, {}))(jnp.ones((1, 1)))
        return
    got = build()(jnp.ones((2, 2)), 1.0, {})
    assert jnp.isfinite(got.x0).all() and jnp.isfinite(got.eps).all()


def test_errors_name_the_value():
    with pytest.raises(ValueError, match=r"with X0\(\), the network must return shape \(2, 3\), got \(2, 1\)"):
        predictor(lambda x, label, cond: x[:, :1], EDM(), X0())(jnp.ones((2, 3)), 1.0, {})
    with pytest.raises(ValueError, match=r"with LearnedVariance\(mean=Eps\(\)\), .* shape \(2, 6\), got \(2, 3\)"):
        predictor(lambda x, label, cond: x, EDM(), LearnedVariance())(jnp.ones((2, 3)), 1.0, {})
    with pytest.raises(ValueError, match="sigma_data > 0, got 0"):
        EDMPreconditioning(sigma_data=0)


@pytest.mark.parametrize("process_name", PROCESSES)
def test_learned_variance_lies_between_its_bounds(process_name):
    """-1 and 1 are the variances of q(x_s | x_t, x0) and of q(x_t | x_s); the scale between them is logarithmic."""
    process = PROCESSES[process_name]
    s, _, t = TIMES[process_name]
    raw = jnp.broadcast_to(jnp.array([-1.0, 1.0, 0.0, 0.5]), (3, 4))
    x = jnp.ones_like(raw)
    got = LearnedVariance(mean=V()).prediction(process, jnp.concatenate([x, raw], axis=-1), x, t)
    assert got.variance is not None
    log_variance = reverse_log_variance(process, s, t, got.variance)
    # x_t = (alpha_t / alpha_s) x_s + fresh noise: what the marginals leave for the noise
    forward = process.sigma(t) ** 2 - (process.alpha(t) / process.alpha(s) * process.sigma(s)) ** 2
    # and of x_s given x_t and x0, two Gaussian measurements of x_s: their precisions add
    posterior = 1 / ((process.alpha(t) / process.alpha(s)) ** 2 / forward + 1 / process.sigma(s) ** 2)
    low, high = np.log(posterior), np.log(forward)
    expected = [low, high, (low + high) / 2, 0.25 * low + 0.75 * high]
    np.testing.assert_allclose(log_variance, np.broadcast_to(expected, (3, 4)), rtol=1e-9)


@pytest.mark.parametrize("process_name", PROCESSES)
def test_reverse_variance_is_finite_to_the_data_and_in_small_steps(process_name):
    """To the data the two bounds meet; over a short step, float32 is enough."""
    process = PROCESSES[process_name]
    t_min, _ = process.time_span
    to_data = reverse_log_variance(process, 0.0, t_min, jnp.array([[0.0, 1.0]]))
    np.testing.assert_allclose(to_data, 2 * jnp.log(process.sigma(t_min)) * jnp.ones((1, 2)), rtol=1e-12)
    t = TIMES[process_name][1]
    t = 2.0 ** round(np.log2(t))  # exact in both dtypes
    step = lambda dtype: reverse_log_variance(
        process, jnp.asarray(t * (1 - 2**-9), dtype), jnp.asarray(t, dtype), jnp.zeros((1, 1), dtype)
    )
    assert step(jnp.float32).dtype == jnp.float32
    np.testing.assert_allclose(step(jnp.float32), step(jnp.float64), atol=1e-4)


def test_prediction_is_a_pytree():
    doubled = jax.tree.map(lambda a: 2 * a, Prediction(jnp.ones(2), jnp.zeros(2)))
    np.testing.assert_array_equal(doubled.x0, [2, 2])
    flow = Velocity().prediction(RectifiedFlow(), jnp.ones((1, 1)), jnp.zeros((1, 1)), 0.25)
    np.testing.assert_allclose([flow.x0[0, 0], flow.eps[0, 0]], [-0.25, 0.75])
