"""Adaptive integration against an independent integrator of order 8, moments of the SDE, counts and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.processes import RectifiedFlow
from jdiff.samplers import checked, integrate_adaptive, sample_adaptive
from tests.samplers.tools import SMOOTH, SMOOTH_TARGETS, exact_end, keys_of, marginal, starts
from tests.table import anisotropic


@functools.cache
def solve(process_name, method, tolerance):
    """(target, x) -> Solved, compiled once."""
    process, start = SMOOTH[process_name]
    return jax.jit(
        lambda target, x: integrate_adaptive(
            keys_of(len(x)),
            x,
            target.denoiser(process),
            process,
            start,
            process.time_span[0],
            method=method,
            rtol=tolerance,
            atol=tolerance,
            max_steps=4000,
        ),
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("process_name", "method", "tolerance"),
    [("vp", "tsit5", 1e-8), ("edm", "dopri8", 1e-9), ("flow", "kvaerno5", 1e-5)],
)
def test_the_flow_is_solved_to_its_tolerance(process_name, method, tolerance):
    target, (x, exact) = SMOOTH_TARGETS["mixture"](), exact_end(process_name, "mixture")
    solved = solve(process_name, method, tolerance)(target, x)
    np.testing.assert_allclose(solved.x, exact, atol=20 * tolerance * SMOOTH[process_name][1])
    # Alone, a sample takes the same steps and ends at the same place.
    alone = solve(process_name, method, tolerance)(target, x[3:4])
    np.testing.assert_allclose(alone.x[0], solved.x[3], rtol=1e-9)
    assert alone.steps[0] == solved.steps[3]
    assert len(np.unique(solved.steps)) > 1


@pytest.mark.usefixtures("x64")
def test_there_and_back():
    (process, start), target = SMOOTH["vp"], SMOOTH_TARGETS["mixture"]()
    x, exact = exact_end("vp", "mixture")
    back = integrate_adaptive(
        keys_of(4), exact[:4], target.denoiser(process), process, process.time_span[0], start, rtol=1e-7, atol=1e-7
    )
    np.testing.assert_allclose(back.x, x[:4], atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_moments_of_the_adaptive_sde():
    """Of 2000 samples, within four standard errors; and noise that depends on its sample alone."""
    (process, start), target, n = SMOOTH["vp"], SMOOTH_TARGETS["gaussian"](), 2000
    x = starts(process, start, target, n)
    solved = solve("vp", "sde", 3e-2)(target, x)
    mean, covariance = marginal(process, process.time_span[0], target)
    np.testing.assert_allclose(solved.x.mean(axis=0), mean, atol=4 * np.sqrt(np.diag(covariance).max() / n))
    atol = 4 * np.sqrt(2 / n) * np.diag(covariance).max()
    np.testing.assert_allclose(np.cov(solved.x.T), covariance, atol=atol)


@pytest.mark.parametrize("method", ["tsit5", "dopri8", "sde"])
def test_evaluations_are_counted(method):
    (process, start), exact, calls = SMOOTH["edm"], anisotropic(jnp.float32).denoiser(SMOOTH["edm"][0]), []

    def denoise(x, t):
        jax.debug.callback(lambda _: calls.append(1), x)
        return exact(x, t)

    x = jnp.ones((1, 2))
    solved = integrate_adaptive(
        keys_of(1), x, denoise, process, start, process.time_span[0], method=method, rtol=1e-2, atol=1e-2
    )
    jax.effects_barrier()
    assert len(calls) == solved.nfe[0]


def test_samples_from_zero_snr_in_float32():
    process, target = RectifiedFlow(), anisotropic(jnp.float32)
    run = jax.jit(lambda keys: sample_adaptive(keys, target.denoiser(process), process, (2,)))
    solved = run(keys_of(2000))
    mean, covariance = target.moments()
    assert solved.x.dtype == jnp.float32
    np.testing.assert_allclose(solved.x.mean(axis=0), mean, atol=4 * np.sqrt(0.7 / 2000))
    np.testing.assert_allclose(np.cov(solved.x.T), covariance, atol=4 * np.sqrt(2 / 2000) * 0.7)


def test_too_many_steps_are_an_error():
    process, target = SMOOTH["vp"][0], anisotropic(jnp.float32)
    run = lambda x: integrate_adaptive(
        keys_of(2), x, target.denoiser(process), process, 0.9, 0.05, max_steps=3, rtol=1e-6, atol=1e-6
    )
    x = jnp.ones((2, 2))
    message = "sample 0 needs more than max_steps steps.*3 were taken"
    with pytest.raises(ValueError, match=message):
        run(x)
    with pytest.raises(ValueError, match=message):
        checked(lambda x: run(x).x)(x)
    assert np.isnan(jax.jit(run)(x).x).all()


def test_bad_values_are_named():
    x, flow = jnp.ones((2, 2)), RectifiedFlow()
    denoise = anisotropic(jnp.float32).denoiser(flow)
    run = lambda **options: integrate_adaptive(keys_of(2), x, denoise, flow, 1.0, 0.1, **options)
    with pytest.raises(ValueError, match="tsit5, dopri8, kvaerno5, sde, got 'rk4'"):
        run(method="rk4")
    with pytest.raises(ValueError, match=r"must be positive, got 0\.0"):
        run(rtol=0.0)
    with pytest.raises(ValueError, match="needs a finite log-SNR at its start"):
        run(method="sde")
    with pytest.raises(ValueError, match=r"one key a sample, got \(3,\)"):
        integrate_adaptive(keys_of(3), x, denoise, flow, 1.0, 0.1)
