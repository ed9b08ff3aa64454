"""Deterministic methods against the loops of their papers and packages, and their weights against float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.prediction import Prediction
from jdiff.processes import EDM, VP, RectifiedFlow
from jdiff.samplers import SOLVERS, integrate, karras, log_snr, uniform
from jdiff.samplers.multistep import Multistep
from jdiff.samplers.runge_kutta import RES, DPMSolver, ExponentialRungeKutta
from jdiff.samplers.unipc import UniPC
from tests.samplers.published import GRID, LOOPS, PROCESS, START, data
from tests.samplers.tools import keys_of

METHODS = {
    **SOLVERS,
    "unipc3_bh1": UniPC(p=3, variant="bh1"),
    "unipc2_bh1_eps": UniPC(p=2, variant="bh1", space="eps"),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", LOOPS)
def test_a_method_is_what_was_published(name):
    def denoise(x, t):
        x0 = data(jnp, x, t)
        return Prediction(x0, (x - PROCESS.alpha(t) * x0) / PROCESS.sigma(t))

    with jax.disable_jit():
        got = integrate(keys_of(3), jnp.asarray(START), denoise, PROCESS, METHODS[name], jnp.asarray(GRID))
    np.testing.assert_allclose(got, LOOPS[name](), rtol=1e-9)


OURS = {name: SOLVERS[name] for name in LOOPS if name in SOLVERS}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OURS)
def test_from_no_signal_to_the_data(name):
    """Over the whole of [1, 0] of a rectified flow; where the data are known, every method arrives at them."""
    flow, point = RectifiedFlow(), jnp.array([[0.4, -0.9]])

    def denoise(x, t):
        x0 = jnp.broadcast_to(point, x.shape)
        return Prediction(x0, (x - flow.alpha(t) * x0) / flow.sigma(t))

    grid = jnp.array([1.0, 0.8, 0.5, 0.3, 0.1, 0.0])
    with jax.disable_jit():
        x, path = integrate(keys_of(3), jnp.asarray(START), denoise, flow, OURS[name], grid, trajectory=True)
    np.testing.assert_allclose(x, jnp.broadcast_to(point, x.shape), rtol=1e-12)
    straight = START + (1 - np.asarray(grid))[:, None, None] * (np.asarray(point) - START)
    np.testing.assert_allclose(path, straight, atol=1e-12)


TABLES = [name for name in OURS if isinstance(OURS[name], Multistep | ExponentialRungeKutta)]


@pytest.mark.parametrize("name", TABLES)
def test_weights_in_float32(name):
    """Over few and many steps: within 1e-4 of a step's largest weight in float64, whose times are those in float32.

    The difference of two log-SNR, some 1e-6 of it, is what is lost over a hundred steps.
    """
    plan = jax.jit(OURS[name].plan)
    for process, make in [(EDM(), karras), (VP(), log_snr), (RectifiedFlow(), uniform)]:
        for n in (6, 101):
            grid = make(process, n)
            low = np.asarray(plan(process, grid).mix)
            assert low.dtype == np.float32
            with jax.enable_x64(True):
                high = np.asarray(plan(process, jnp.asarray(np.asarray(grid, np.float64))).mix)
            size = np.abs(high).reshape(n - 1, -1).max(axis=1)
            error = np.abs(low - high).reshape(n - 1, -1).max(axis=1)
            assert size.max() > 0
            assert (error <= 1e-4 * size).all(), (process, n, error, size)


def test_settings_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="order 2 or 3, got 4"):
        DPMSolver(order=4)
    with pytest.raises(ValueError, match="'x0' or 'eps', got 'v'"):
        DPMSolver(order=2, space="v")
    with pytest.raises(ValueError, match="order 2 or 3, got 1; order 1 is DDIM"):
        RES(order=1)
    with pytest.raises(ValueError, match="p >= 1, got 0"):
        UniPC(p=0)
    with pytest.raises(ValueError, match="'bh1' or 'bh2', got 'bh3'"):
        dataclasses.replace(UniPC(p=2), variant="bh3")
