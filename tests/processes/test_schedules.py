"""Shifted and learned schedules: closed forms, and gradients against differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jdiff.processes import (
    VP,
    Cosine,
    RectifiedFlow,
    Shifted,
    ZeroTerminalSNR,
    flow_shift,
    linear_gamma,
    resolution_shift,
    token_shift,
)
from tests.table import PROCESSES, bent

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_the_shift_of_stable_diffusion_3(shift):
    """t' = s t / (1 + (s - 1) t), at both ends, too, and its slope s / (1 + (s - 1) t)^2."""
    process, t = flow_shift(shift, t_min=0.01), jnp.array([0.0, 1e-6, 0.01, 0.3, 0.8, 1 - 1e-9, 1.0])
    assert process.time_span == (0.01, 1)
    moved = shift * t / (1 + (shift - 1) * t)
    np.testing.assert_allclose(process.sigma(t), moved, rtol=1e-14)
    np.testing.assert_allclose(process.alpha(t), 1 - moved, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(process.noise_label(t), moved, rtol=1e-14)
    assert process.alpha(1.0) == 0 and process.sigma(1.0) == 1 and process.sigma(0.0) == 0
    rate = shift / (1 + (shift - 1) * t) ** 2
    np.testing.assert_allclose(process.sigma_slope(t[1:]), rate[1:], rtol=1e-12)
    np.testing.assert_allclose(process.alpha_slope(t[1:]), -rate[1:], rtol=1e-12)


def test_shifts_by_resolution_and_tokens():
    """Averaged over blocks of 4 x 4, noise of 256 px is as strong as noise of 64 px: its SNR is 16 times larger."""
    base, process = Cosine(), resolution_shift(Cosine(), resolution=256, base_resolution=64)
    t = jnp.array([0.1, 0.7])
    np.testing.assert_allclose(16 * (process.alpha(t) / process.sigma(t)) ** 2, jnp.exp(base.log_snr(t)), rtol=1e-12)
    # Flux: mu of 256 and 4096 tokens, and their mean between
    np.testing.assert_allclose(np.log([token_shift(256), token_shift(2176), token_shift(4096)]), [0.5, 0.825, 1.15])
    for make, message in [
        (lambda: resolution_shift(VP(), 0, 64), "above 0, got 0 and 64"),
        (lambda: flow_shift(0.0), "shift > 0, got 0.0"),
        (lambda: token_shift(0), "tokens > 0, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("name", ["vp", "edm", "subvp", "zero_snr", "learned", "chain"])
def test_any_process_can_be_shifted(name):
    base, t = PROCESSES[name], jnp.array([0.053, 0.304, 0.897])
    process = Shifted(process=base, log_snr_shift=0.7)
    ratio = (process.alpha(t) / process.sigma(t)) / (base.alpha(t) / base.sigma(t))
    np.testing.assert_allclose(ratio, np.exp(0.35), rtol=1e-11)
    u = process.inner_time(t)
    np.testing.assert_allclose([process.alpha(t), process.sigma(t)], [base.alpha(u), base.sigma(u)], rtol=1e-11)
    np.testing.assert_allclose(process.time(base.log_snr(t) + 0.7), t, rtol=1e-11)


def test_gradients_flow_through_a_shift():
    """To the shift, the time and what is shifted, also where the log-SNR is infinite; second derivatives, too."""

    def values(beta_max, shift, t):
        process = Shifted(process=VP(beta_max=beta_max), log_snr_shift=shift)
        return process.alpha(t), process.sigma(t), process.alpha_slope(t)

    check_grads(jax.jit(values), (20.0, -0.5, jnp.array([0.1, 0.6])), order=1, rtol=1e-5, atol=1e-6)
    end = lambda shift: Shifted(process=RectifiedFlow(), log_snr_shift=shift).alpha_slope(1.0)
    np.testing.assert_allclose(jax.jit(jax.grad(end))(-2 * np.log(3.0)), -0.5 / 3, rtol=1e-12)  # of -exp(shift / 2)


def test_a_shift_and_a_rescaling_can_be_nested():
    """Either way round; a shift does not change where the signal ends, a rescaling does away with what is left."""
    before = ZeroTerminalSNR(process=Shifted(process=VP(), log_snr_shift=3.0))
    after = Shifted(process=ZeroTerminalSNR(process=VP()), log_snr_shift=3.0)
    t = jnp.array([0.1, 0.5, 0.9])
    for process in (before, after):
        end, slope = jax.jit(lambda process: (process.alpha(1.0), process.alpha_slope(1.0)))(process)
        assert end == 0 and np.isfinite(slope)
    values = lambda process: (process.alpha(t), process.sigma(t), process.time(process.log_snr(t)))
    alphas = []
    for process in (before, after):
        alpha, sigma, back = map(np.asarray, jax.jit(values)(process))
        np.testing.assert_allclose(back, t, rtol=1e-11)
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)
        alphas.append(alpha)
    assert np.abs(alphas[0] - alphas[1]).max() > 5e-4


def test_a_learned_schedule_keeps_its_ends():
    for process in (bent(), linear_gamma(gamma_min=-9.0, gamma_max=3.0, units=4, t_min=0.01)):
        ends = process.log_snr(jnp.array(process.time_span))
        np.testing.assert_allclose(ends, [-process.gamma_min, -process.gamma_max], rtol=1e-13)
    # The constructor's is straight to a few hundredths of its span, the table's is not.
    t = jnp.linspace(1e-3, 1, 101)
    off = lambda process: np.abs(-process.log_snr(t) - (-13.3 + 18.3 * (t - 1e-3) / 0.999)).max() / 18.3
    assert off(linear_gamma()) < 0.03 and off(bent()) > 0.1
    with pytest.raises(ValueError, match="units > 0, got 0"):
        linear_gamma(units=0)


def test_gradients_reach_the_learned_parameters():
    """Through everything, the inverse included, against differences; there are no other leaves."""
    process = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), bent())
    assert len(jax.tree.leaves(process)) == 3

    def values(process):
        t = jnp.array([1e-4, 0.05, 0.5, 0.9])
        log_snr = jnp.array([15.0, 9.0, 1.0, -4.0])
        slopes = process.alpha_slope(t), process.diffusion(t)
        return process.alpha(t), process.sigma(t), process.log_snr(t), slopes, process.time(log_snr)

    check_grads(jax.jit(values), (process,), order=1, rtol=1e-5, atol=1e-6)
    rise = jax.grad(lambda log_snr: process.time(log_snr))(1.0)
    np.testing.assert_allclose(rise * jax.grad(process.log_snr)(process.time(1.0)), 1, rtol=1e-12)


def test_a_learned_schedule_can_be_learned():
    """Gradient descent on its parameters brings it to another schedule: VP's, between the same ends."""
    t = jnp.linspace(0.01, 1, 64)
    wanted = VP(t_min=0.01).log_snr(t)
    start = linear_gamma(gamma_min=-float(wanted[0]), gamma_max=-float(wanted[-1]), t_min=0.01)
    error = lambda process: jnp.mean((process.log_snr(t) - wanted) ** 2)

    @jax.jit
    def descend(process):
        step = lambda _, p: jax.tree.map(lambda leaf, g: leaf - 0.02 * g, p, jax.grad(error)(p))
        return jax.lax.fori_loop(0, 300, step, process)

    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), start)
    end = descend(start)
    assert error(end) < 0.1 * error(start)
    assert dataclasses.replace(end, t_min=0.01).time_span == (0.01, 1.0)
