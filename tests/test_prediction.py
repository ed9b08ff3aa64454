"""Parameterizations against their definitions and against exact predictions of known distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import oracles
from jdiff.prediction import X0, EDMPreconditioning, Eps, Prediction, Velocity, predictor
from jdiff.processes import EDM, VP, RectifiedFlow
from tests.table import NEED_SIGNAL, PARAMETERIZATIONS, PROCESSES, TIMES, two_modes

pytestmark = pytest.mark.usefixtures("x64")


def raw_output(name, process, x0, eps, t):
    """What the perfect network of each parameterization returns, from the definition."""
    x = process.perturb(x0, eps, t)
    column = lambda value: jnp.reshape(value, (-1, 1))
    alpha, sigma = column(process.alpha(t)), column(process.sigma(t))
    if name == "velocity":  # of the straight path through (x0, eps), by finite differences
        step = 1e-6 * t
        ahead, behind = process.perturb(x0, eps, t + step), process.perturb(x0, eps, t - step)
        return (ahead - behind) / column(2 * step)
    if name == "edm":  # unit-variance target: residual of the posterior mean of N(0, 0.7^2) over its standard deviation
        gain = alpha * 0.7**2 / (alpha**2 * 0.7**2 + sigma**2)
        return (x0 - gain * x) / jnp.sqrt(0.7**2 * (1 - alpha * gain))
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -(x - alpha * x0) / sigma**2}[name]


@pytest.mark.parametrize("process_name", PROCESSES)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_perfect_output_gives_data_and_noise(name, process_name):
    process, t = PROCESSES[process_name], jnp.array(TIMES[process_name])
    x0, eps = jnp.array(np.random.default_rng(1).normal(size=(2, 3, 4)))
    raw = raw_output(name, process, x0, eps, t)
    got = PARAMETERIZATIONS[name].prediction(process, raw, process.perturb(x0, eps, t), t)
    np.testing.assert_allclose(got.x0, x0, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.eps, eps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process_name", PROCESSES)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_any_output_is_consistent_with_x(name, process_name):
    process, t = PROCESSES[process_name], jnp.array(TIMES[process_name])
    raw, x = jnp.array(np.random.default_rng(2).normal(size=(2, 3, 4)))
    got = PARAMETERIZATIONS[name].prediction(process, raw, x, t)
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
    predictor(network, VP(), Eps())(x, 0.25, {"label": 1})
    np.testing.assert_array_equal(seen[0][0], x)
    np.testing.assert_array_equal(seen[0][1], [0.25] * 3)
    assert seen[0][2] == {"label": 1}


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_impossible_pairs_are_refused_when_built(name):
    network = lambda x, noise_label, cond: jnp.ones_like(x)
    build = lambda: predictor(network, RectifiedFlow(), PARAMETERIZATIONS[name])
    if name in NEED_SIGNAL:
        with pytest.raises(ValueError, match=r"signal-to-noise ratio at t = 1\.0 is zero"):
            build()
        with pytest.raises(ValueError, match="is zero"):
            jax.jit(lambda x: predictor(network, RectifiedFlow(), PARAMETERIZATIONS[name])(x, 0.5, {}))(
                jnp.ones((1, 1))
            )
        return
    got = build()(jnp.ones((2, 2)), 1.0, {})
    assert jnp.isfinite(got.x0).all() and jnp.isfinite(got.eps).all()


def test_errors_name_the_value():
    with pytest.raises(ValueError, match=r"must return the shape of its input, \(2, 3\), got \(2, 1\)"):
        predictor(lambda x, label, cond: x[:, :1], EDM(), X0())(jnp.ones((2, 3)), 1.0, {})
    with pytest.raises(ValueError, match="sigma_data > 0, got 0"):
        EDMPreconditioning(sigma_data=0)


def test_prediction_is_a_pytree():
    doubled = jax.tree.map(lambda a: 2 * a, Prediction(jnp.ones(2), jnp.zeros(2)))
    np.testing.assert_array_equal(doubled.x0, [2, 2])
    flow = Velocity().prediction(RectifiedFlow(), jnp.ones((1, 1)), jnp.zeros((1, 1)), 0.25)
    np.testing.assert_allclose([flow.x0[0, 0], flow.eps[0, 0]], [-0.25, 0.75])
