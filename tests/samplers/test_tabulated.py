"""Tables of coefficients run as the methods that they tabulate, and the process of a published schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.interop.schedulers import schedule_of
from jdiff.prediction import Prediction
from jdiff.processes import Nodes
from jdiff.samplers import DDIM, Clip, integrate
from tests.samplers.tools import keys_of

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
X = np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32)


def denoiser(process):
    def denoise(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x0 = jnp.tanh(alpha * x / (0.09 * alpha**2 + sigma**2))
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def end(process, solver, grid, denoise=None):
    run = jax.jit(lambda x: integrate(keys_of(3), x, denoise or denoiser(process), process, solver, jnp.asarray(grid)))
    return np.asarray(run(jnp.asarray(X)))


@pytest.mark.parametrize(("kind", "config"), [("DDIM", {"clip_sample": False, **SD}), ("EulerDiscrete", SD)])
def test_a_table_is_the_method_that_it_tabulates(kind, config):
    """DDIM, which is Euler in sigma / alpha, in the schedule's own process."""
    table = schedule_of({"_class_name": f"{kind}Scheduler", **config}, "config").table(12)
    assert table.solver.nfe(12) == 12
    here, there = (end(table.process, solver, table.grid) for solver in (table.solver, DDIM()))
    np.testing.assert_allclose(here, there, atol=2e-6)


def test_rows_of_heun_by_hand():
    """Two rows, one step from 2 to 1 in sigma: the mean of two slopes; then Euler's from 1 to the data."""
    config = {"_class_name": "HeunDiscreteScheduler", "trained_betas": [0.5, 0.6], "num_train_timesteps": 2}
    table = schedule_of(config, "config").table(2)
    first, last = np.sqrt((1 - np.array([0.2, 0.5])) / np.array([0.2, 0.5]))
    slope = lambda x, sigma: (x - np.tanh(x)) / sigma
    x = X * np.sqrt(1 + first**2)  # in x0 + sigma eps
    ahead = x + (last - first) * slope(x, first)
    x = x + (last - first) * (slope(x, first) + slope(ahead, last)) / 2
    x = x - last * slope(x, last)

    def denoise(state, t):
        alpha, sigma = table.process.alpha(t), table.process.sigma(t)
        x0 = jnp.tanh(state / alpha)
        return Prediction(x0, (state - alpha * x0) / sigma)

    np.testing.assert_allclose(end(table.process, table.solver, table.grid, denoise), x, rtol=1e-5)


def test_a_limit_is_of_the_data_and_leaves_the_state():
    """A posterior's mean keeps its share of the state itself, whatever the data is limited to."""
    table = schedule_of({"_class_name": "DDPMScheduler", **SD}, "config").table(2)
    solver = dataclasses.replace(table.solver, draws=False, limit=Clip(limit=0.25))
    one = dataclasses.replace(solver, rows=type(solver.rows)(*(part[:1] for part in solver.rows)))
    keep, _, _, _, weight = np.asarray(one.rows.step)[0]
    alpha = float(table.process.alpha(one.rows.t[0]))
    sigma = float(table.process.sigma(one.rows.t[0]))
    far = lambda x, t: Prediction(jnp.full_like(x, 4.0), (x - alpha * 4.0) / sigma)
    np.testing.assert_allclose(end(table.process, one, table.grid, far), keep * X + weight * 0.25, rtol=1e-5, atol=1e-6)


def test_a_learned_variance_needs_a_prediction_of_it():
    table = schedule_of({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "config").table(3)
    with pytest.raises(ValueError, match="variance is learned, and the network predicts none"):
        end(table.process, table.solver, table.grid)


def test_nodes_are_exact_and_their_log_snr_has_its_inverse():
    sigmas, alphas = np.array([0.9, 0.5, 0.1, 0.5]), np.array([1e-4, 0.7, 0.99, 0.7])
    process, at = Nodes.placed(alphas, sigmas, np.array([999.0, 400.25, 3.0, 401.0]))
    for value, wanted in [
        (process.alpha, alphas),
        (process.sigma, sigmas),
        (process.noise_label, [999, 400.25, 3, 401]),
    ]:
        np.testing.assert_array_equal(value(jnp.asarray(at)), np.asarray(wanted, np.float32))
    assert len(np.unique(at)) == 4  # two labels of one level lie next to each other
    assert (float(process.alpha(0.0)), float(process.sigma(0.0))) == (1, 0)
    times = jnp.linspace(process.times[1], process.times[-1], 11)[1:-1]
    np.testing.assert_allclose(process.time(process.log_snr(times)), times, rtol=1e-4)
    with pytest.raises(ValueError, match="finite, with alpha >= 0 and sigma > 0"):
        Nodes.of(np.array([1.0]), np.array([0.0]), np.array([0.0]))
