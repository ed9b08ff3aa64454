"""The T-step chain, at its steps, and its rescaling to zero terminal SNR."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.prediction import Eps
from jdiff.processes import (
    VP,
    Chain,
    Cosine,
    Shifted,
    ZeroTerminalSNR,
    betas,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)

pytestmark = pytest.mark.usefixtures("x64")
BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "cosine": cosine_betas}


def rescaled(variances):
    """Algorithm 1 of arXiv:2305.08891, step by step over the betas."""
    root = np.sqrt(np.cumprod(1 - variances))
    first, last = root[0], root[-1]
    root = [(value - last) * first / (first - last) for value in root]
    kept = [root[0] ** 2] + [(after / before) ** 2 for before, after in itertools.pairwise(root)]
    return 1 - np.array(kept)


@pytest.mark.parametrize("name", BETAS)
def test_every_step_is_the_chains_own(name):
    variances = BETAS[name]()
    kept = np.cumprod(1 - variances)
    for chain in (Chain.from_betas(variances), Chain.from_alphas_cumprod(kept)):
        times = chain.times(jnp.float64)
        assert chain.steps == 1000 and chain.time_span == (0.001, 1)
        np.testing.assert_allclose(times[::-1], np.arange(1, 1001) / 1000, rtol=1e-15)
        np.testing.assert_allclose(chain.alpha(times)[::-1] ** 2, kept, rtol=1e-12)
        np.testing.assert_allclose(chain.sigma(times)[::-1] ** 2, 1 - kept, rtol=1e-11)
        np.testing.assert_allclose(betas(chain, times)[::-1], variances, rtol=1e-9)
        for dtype in (jnp.float32, jnp.float64):
            times = chain.times(dtype)
            np.testing.assert_array_equal(chain.timestep(times), np.arange(999, -1, -1))
            np.testing.assert_allclose(chain.time(chain.log_snr(times)), times, rtol=1e-6)
            np.testing.assert_allclose(chain.alpha(times)[::-1] ** 2, kept, rtol=2e-6)
            np.testing.assert_allclose(chain.sigma(times)[::-1] ** 2, 1 - kept, rtol=2e-6)


def test_betas_of_the_papers():
    """DDPM's alphas_cumprod ends at 4.0e-5; Stable Diffusion's sigma / alpha runs from 0.0292 to 14.61."""
    assert np.cumprod(1 - linear_betas())[-1] == pytest.approx(4.036e-5, rel=1e-3)
    level = np.exp(-Chain.from_betas(scaled_linear_betas()).log_snrs / 2)
    assert (level[0], level[-1]) == (pytest.approx(0.0292, abs=5e-5), pytest.approx(14.61, abs=5e-3))
    # The cosine's chain is the cosine process, until its last step is clipped.
    alpha = Chain.from_betas(cosine_betas()).alpha(jnp.arange(1, 1001) / 1000)
    np.testing.assert_allclose(alpha[:-1], Cosine().alpha(jnp.arange(1, 1000) / 1000), rtol=1e-9)
    np.testing.assert_allclose(alpha[-1] ** 2, 0.001 * alpha[-2] ** 2, rtol=1e-9)
    for name, make in BETAS.items():
        assert make(10).shape == (10,) and make(10).dtype == np.float64, name


def test_a_process_is_a_chain_at_the_times_of_a_grid():
    """Of VP: beta(t) / T, in the limit; and the product of 1 - beta is what is left of the data."""
    times = jnp.linspace(1.0, 1e-4, 10_000)
    got = betas(VP(), times)
    np.testing.assert_allclose(np.prod(1 - got), np.exp(-10.05), rtol=1e-9)
    np.testing.assert_allclose(got[:-1] * 1e4, 0.1 + 19.9 * (times[:-1] - 0.5e-4), rtol=2e-3)


def test_networks_are_told_the_timestep():
    """A fraction between steps, at the level where the log-SNR lies; the same after rescaling or a shift."""
    chain = Chain.from_betas(scaled_linear_betas())
    t = chain.time(0.25 * chain.log_snrs[700] + 0.75 * chain.log_snrs[701])
    for process in (chain, ZeroTerminalSNR(process=chain)):
        np.testing.assert_allclose(Eps().noise_label(process, jnp.array([t, 0.001, 1.0])), [700.75, 0, 999], rtol=1e-12)
    shift = chain.log_snrs[200] - chain.log_snrs[500]
    assert Shifted(process=chain, log_snr_shift=shift).noise_label(jnp.asarray(0.501)) == 200
    np.testing.assert_array_equal(VP().noise_label(jnp.array([0.1, 0.9])), [0.1, 0.9])


def test_past_its_end_a_chain_goes_on():
    """A shift towards noise leads there: the log-SNR still falls, and is inverted."""
    process = Shifted(process=Chain.from_betas(scaled_linear_betas()), log_snr_shift=-2.0)
    times = process.process.times(jnp.float64)
    np.testing.assert_allclose(2 * np.log(process.alpha(times) / process.sigma(times)), process.log_snr(times))
    np.testing.assert_allclose(process.alpha(times) ** 2 + process.sigma(times) ** 2, 1, rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_zero_terminal_snr_of_a_chain(name):
    """alpha_T = 0, alpha_1 unchanged, and every step as in a loop over the betas."""
    variances = BETAS[name]()
    chain = Chain.from_betas(variances)
    process, expected = ZeroTerminalSNR(process=chain), rescaled(variances)
    assert process.steps == 1000 and process.time_span == chain.time_span
    for dtype, rtol in [(jnp.float64, 1e-9), (jnp.float32, 2e-4)]:
        times = chain.times(dtype)
        alpha = process.alpha(times)
        assert alpha[0] == 0 and process.sigma(times[0]) == 1
        np.testing.assert_allclose(alpha[-1], np.sqrt(1 - variances[0]), rtol=1e-12 if rtol < 1e-6 else 1e-7)
        np.testing.assert_allclose(alpha[::-1][:-1] ** 2, np.cumprod(1 - expected)[:-1], rtol=rtol)
        np.testing.assert_allclose(process.time(process.log_snr(times)), times, rtol=1e-6)
    np.testing.assert_allclose(betas(process, times.astype(jnp.float64))[::-1], expected, rtol=1e-4)
    np.testing.assert_allclose(betas(process, chain.times(jnp.float64))[::-1], expected, rtol=1e-8)


def test_zero_terminal_snr_keeps_what_is_before_the_first_step():
    process = ZeroTerminalSNR(process=VP(t_min=0.1))
    t = jnp.array([0.0, 0.01, 0.05, 0.1])
    np.testing.assert_allclose(process.alpha(t), VP().alpha(t), rtol=1e-13)
    np.testing.assert_allclose(process.sigma(t), VP().sigma(t), rtol=1e-13)
    np.testing.assert_allclose(process.time(process.log_snr(t)), t, rtol=1e-12)


def test_bad_chains_are_named():
    for make, message in [
        (lambda: Chain.from_betas(np.ones((2, 2))), r"shape \[T\] with T >= 2, got \(2, 2\)"),
        (lambda: Chain.from_betas(np.array([0.1])), r"T >= 2, got \(1,\)"),
        (lambda: Chain.from_betas(np.array([0.1, 1.0])), r"got \[1\.\] at \[1\]; for a last one of 1, use Zero"),
        (lambda: Chain.from_betas(np.array([0.0, 0.1])), r"between 0 and 1, got \[0\.\] at \[0\]"),
        (lambda: Chain.from_betas(np.array([0.1, np.nan])), r"got \[nan\] at \[1\]"),
        (lambda: Chain.from_alphas_cumprod(np.array([0.9])), r"T >= 2, got \(1,\)"),
        (lambda: Chain.from_alphas_cumprod(np.array([0.9, 0.95])), r"must decrease.*got \[0\.9  0\.95\]"),
        (lambda: Chain.from_alphas_cumprod(np.array([0.9, 0.0])), "for a last one of 0, use ZeroTerminalSNR"),
        (lambda: Chain.from_alphas_cumprod(np.array([1.0, 0.5])), "between 1 and 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
