"""Time grids against what makes them equal steps, published examples, and the optimum of a known problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiff import oracles
from jdiff.processes import EDM, VP, Chain, RectifiedFlow, linear_betas
from jdiff.samplers import GRIDS, align, beta, karras, linear_quadratic, log_snr, quadratic, step_costs, uniform
from tests.samplers.tools import keys_of
from tests.table import PROCESSES

pytestmark = pytest.mark.usefixtures("x64")
OF_CHAINS = {"leading", "linspace", "trailing"}
OF_SNR = {"log_snr", "exponential", "karras"}  # they need a finite log-SNR


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("grid", [name for name in GRIDS if name not in OF_CHAINS])
def test_grids_fall_over_the_whole_span(grid, name):
    process = PROCESSES[name]
    if grid in OF_SNR and process.alpha(process.time_span[1]) == 0:
        with pytest.raises(ValueError, match=r"finite log-SNR at both ends of .*use the uniform grid"):
            GRIDS[grid](process, 5)
        return
    for dtype in (jnp.float32, jnp.float64):
        times = GRIDS[grid](process, 9, dtype=dtype)
        assert times.shape == (9,) and times.dtype == dtype
        t_min, t_max = process.time_span
        np.testing.assert_array_equal(times[jnp.array([0, -1])], jnp.array([t_max, t_min], dtype))
        assert (jnp.diff(times) < 0).all()
    level = np.asarray(process.sigma(times) / process.alpha(times))
    equal = {
        "uniform": lambda: times,
        "quadratic": lambda: np.sqrt(times),
        "log_snr": lambda: np.log(level),
        "exponential": lambda: np.log(level),
        "karras": lambda: level ** (1 / 7),
        "beta": lambda: stats.beta.cdf((np.asarray(times) - t_min) / (t_max - t_min), 0.6, 0.6),
    }
    if grid in equal:
        steps = np.diff(equal[grid]())
        np.testing.assert_allclose(steps, steps[0], rtol=1e-5)


def test_karras_levels_of_the_paper():
    """EDM's second-order sampler on CIFAR-10 starts at 80 and falls to 57.586 in the first of 18 levels."""
    times = karras(EDM(), 18, dtype=jnp.float64)
    # (80^(1/7) + (0.002^(1/7) - 80^(1/7)) / 17)^7 by hand in decimal arithmetic
    np.testing.assert_allclose(times[1], 57.5859, rtol=1e-5)


def test_linear_quadratic_begins_linear_and_goes_on_as_a_parabola():
    """The slope is continuous where the parts meet, and second differences are equal after it."""
    gone = 1 - linear_quadratic(RectifiedFlow(t_min=1e-9), 51, dtype=jnp.float64)
    np.testing.assert_allclose(gone[:26], 0.025 * np.arange(26) / 25, atol=1e-7)
    bend = np.diff(gone, 2)
    np.testing.assert_allclose(bend[26:], bend[26], rtol=1e-4)
    assert 0 < bend[24] <= bend[26]
    with pytest.raises(ValueError, match=r"threshold over 0 and below 0\.5 for 51 times, got 0\.7"):
        linear_quadratic(RectifiedFlow(), 51, threshold=0.7)


def test_spacings_of_a_chain():
    """Zero-terminal-SNR paper (2305.08891), table 2: T = 1000 and ten steps, counted there from 1."""
    chain = Chain.from_betas(linear_betas(1000))
    steps = lambda grid, n: np.round(np.asarray(GRIDS[grid](chain, n, dtype=jnp.float64)) * 1000).astype(int).tolist()
    assert steps("leading", 10) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert steps("linspace", 10) == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    assert steps("trailing", 10) == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    for grid in OF_CHAINS:
        assert steps(grid, 1000) == list(range(1000, 0, -1))
        with pytest.raises(ValueError, match="chain of 1000 steps needs 2 <= n <= 1000 times, got 1001"):
            GRIDS[grid](chain, 1001)
        with pytest.raises(ValueError, match=r"T-step chain .* got VP"):
            GRIDS[grid](VP(), 10)


def test_too_short():
    for grid in (uniform, quadratic, beta, linear_quadratic, karras, log_snr):
        with pytest.raises(ValueError, match="n >= 2 times, got 1"):
            grid(EDM(), 1)
    assert uniform(RectifiedFlow(), 2).tolist() == pytest.approx([1.0, 1e-3])
    with pytest.raises(ValueError, match=r"a > 0 and b > 0, got -1 and 0\.6"):
        beta(EDM(), 5, a=-1)


def test_step_costs_of_a_gaussian():
    """The mean square error m(SNR) of the exact denoiser falls along a path by what the prediction moves, so that a
    step's bound is the area between m at its start and m."""
    process, variance = EDM(sigma_min=0.1, sigma_max=5.0), 0.64
    target = oracles.gaussian(jnp.zeros(2), variance * jnp.eye(2))
    candidates = log_snr(process, 40, jnp.float64)
    n = 20000
    got = step_costs(keys_of(n), target.denoiser(process), process, target.sample(jax.random.key(1), n), candidates)
    error = lambda snr: 2 / (1 / variance + snr)
    snr = np.exp(process.log_snr(candidates))
    area = lambda a, b: error(a) * (b - a) - 2 * (np.log(1 / variance + b) - np.log(1 / variance + a))
    for i, j in [(0, 39), (5, 20), (20, 30)]:
        np.testing.assert_allclose(got[i, j], area(snr[i], snr[j]) / 2, rtol=0.02)
    assert np.isinf(np.asarray(got)[np.tril_indices(40)]).all()


def test_align_finds_the_best_of_all_grids():
    """Against trying every choice; and with many candidates it has less bound than the standard grids."""
    process = EDM(sigma_min=0.1, sigma_max=5.0)
    target = oracles.ring(dtype=jnp.float64)
    x0, denoise = target.sample(jax.random.key(1), 512), target.denoiser(process)
    candidates = log_snr(process, 9, jnp.float64)
    cost = np.asarray(step_costs(keys_of(512), denoise, process, x0, candidates))
    total = lambda inner: sum(cost[i, j] for i, j in zip((0, *inner), (*inner, 8), strict=True))
    every = [(i, j, k) for i in range(1, 8) for j in range(i + 1, 8) for k in range(j + 1, 8)]
    best = min(every, key=total)
    got = align(keys_of(512), denoise, process, x0, 5, candidates)
    np.testing.assert_array_equal(got, candidates[jnp.array([0, *best, 8])])
    with pytest.raises(ValueError, match="from 2 to the number of candidates, 9, got 10"):
        align(keys_of(512), denoise, process, x0, 10, candidates)


def test_align_starts_from_no_signal():
    process, target = RectifiedFlow(), oracles.ring(dtype=jnp.float64)
    candidates = uniform(process, 30, jnp.float64)
    x0 = target.sample(jax.random.key(1), 256)
    got = align(keys_of(256), target.denoiser(process), process, x0, 6, candidates)
    assert got.shape == (6,) and got[0] == 1 and got[-1] == process.t_min and (jnp.diff(got) < 0).all()
