"""The distributions that times are drawn from, and what takes the place of independent draws."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import kstest, norm

from jdiff import rng
from jdiff.losses import (
    GridTime,
    LogitNormalTime,
    LogNormalTime,
    LogUniformTime,
    LossAware,
    UniformTime,
    low_discrepancy,
    noise,
)
from jdiff.processes import EDM, VP, RectifiedFlow
from jdiff.samplers import grids
from tests.table import PROCESSES

TIMES = {
    "uniform": UniformTime(),
    "grid": GridTime(steps=5),
    "log_normal": LogNormalTime(mean=-0.4, std=0.9),
    "logit_normal": LogitNormalTime(mean=0.3, std=0.7),
    "log_uniform": LogUniformTime(),
}
U = np.linspace(0, 1, 129)[:-1] + 1 / 256


def keys_of(n):
    return rng.per_example(jax.random.key(0), jnp.arange(n))


def level(process, t):
    """log(sigma / alpha)."""
    return np.log(np.asarray(process.sigma(t), float)) - np.log(np.asarray(process.alpha(t), float))


def infinite(name, process):
    """Whether this distribution does not exist for lack of signal at the end."""
    return name == "log_uniform" and process.alpha(process.time_span[1]) == 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", PROCESSES)
def test_quantiles_invert_the_distributions(process_name):
    """The distribution function of quantile(u), from SciPy or from the definition, is u."""
    process = PROCESSES[process_name]
    low, high = map(float, process.time_span)
    at = lambda name: np.asarray(TIMES[name].quantile(jnp.array(U), process))
    share = lambda t: (t - low) / (high - low)
    np.testing.assert_allclose(share(at("uniform")), U, rtol=1e-12)
    np.testing.assert_allclose(norm(0.3, 0.7).cdf(logit(share(at("logit_normal")))), U, rtol=1e-6)
    times = at("log_normal")
    inside = (times > low) & (times < high)
    assert inside.sum() > 100
    np.testing.assert_allclose(norm(-0.4, 0.9).cdf(level(process, times))[inside], U[inside], rtol=1e-6)
    if not infinite("log_uniform", process):
        ends = level(process, np.array([low, high]))
        np.testing.assert_allclose((level(process, at("log_uniform")) - ends[0]) / (ends[1] - ends[0]), U, rtol=1e-6)
    every = grids.uniform(process, 5, dtype=jnp.float64)[::-1]
    np.testing.assert_allclose(at("grid"), np.repeat(every, [26, 25, 26, 25, 26]), rtol=1e-12)


@pytest.mark.parametrize("process_name", PROCESSES)
@pytest.mark.parametrize("name", TIMES)
def test_no_quantile_leaves_the_span(name, process_name):
    """In float32, from 0 to the greatest number below 1, rising with u."""
    process = PROCESSES[process_name]
    u = jnp.asarray([0, 1e-7, 0.1, 0.5, 0.9, 1 - 2**-24], jnp.float32)
    if infinite(name, process):
        with pytest.raises(ValueError, match=r"LogUniformTime cannot be used with .* infinite; use UniformTime"):
            TIMES[name].quantile(u, process)
        return
    t = TIMES[name].quantile(u, process)
    low, high = (np.float32(end) for end in process.time_span)
    assert t.dtype == jnp.float32 and (jnp.diff(t) >= 0).all() and low <= t[0] < t[-1] <= high


def test_logit_normal_is_log_normal_on_rectified_flow():
    """There logit(t) = log(sigma / alpha), but for the span's lower end."""
    process, u = RectifiedFlow(), jnp.asarray(U)
    got = LogitNormalTime(mean=0.2, std=1.1).quantile(u, process)
    np.testing.assert_allclose(got, LogNormalTime(mean=0.2, std=1.1).quantile(u, process), atol=process.t_min)


def test_times_of_log_normal_outside_the_span_stay_at_its_ends():
    """Here half of them at the lower."""
    narrow = EDM(sigma_min=np.exp(-0.4), sigma_max=1.2)
    t = np.asarray(TIMES["log_normal"].quantile(jnp.asarray(U), narrow))
    assert t.min() == np.float32(narrow.sigma_min) and t.max() == np.float32(1.2)
    assert np.mean(t == t.min()) == 0.5


def test_an_examples_time_and_noise_do_not_depend_on_its_batch():
    """To the bit: alone, at another place and among others."""

    @jax.jit
    def draw(index):
        keys = rng.per_example(jax.random.key(3), index)
        return {name: noise(keys, EDM(), times, jnp.zeros((len(index), 4, 3))) for name, times in TIMES.items()}

    every = draw(np.arange(64))
    for index in (np.array([17]), np.array([40, 17, 3])):
        jax.tree.map(lambda some, all, i=index: np.testing.assert_array_equal(some, all[i]), draw(index), every)
    for name, (t, eps) in every.items():
        assert len(np.unique(eps[:, 0, 0])) == 64 and len(np.unique(t)) == (5 if name == "grid" else 64)


def test_times_from_keys_are_uniform_and_independent_of_the_noise():
    t, eps = noise(keys_of(20_000), VP(), UniformTime(), jnp.zeros((20_000, 2)))
    low, high = VP().time_span
    assert kstest((np.asarray(t) - low) / (high - low), "uniform").pvalue > 1e-3
    for column in np.asarray(eps).T:
        assert abs(np.corrcoef(t, column)[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(np.corrcoef(np.asarray(eps).T)[0, 1]) < 4 / np.sqrt(20_000)


def test_given_quantiles_are_used():
    u, keys = jnp.asarray(U, jnp.float32), keys_of(len(U))
    drawn, given = (noise(keys, VP(), UniformTime(), jnp.zeros((len(U), 2)), u=u) for u in (None, u))
    np.testing.assert_array_equal(given[0], UniformTime().quantile(u, VP()))
    np.testing.assert_array_equal(given[1], drawn[1])


def low_discrepancies(steps, n):
    """u [steps, n] of the first n places of many steps."""
    keys = rng.per_example(jax.random.key(5), jnp.arange(steps))
    return np.asarray(jax.jit(jax.vmap(lambda key: low_discrepancy(key, jnp.arange(n))))(keys))


def test_low_discrepancy_is_uniform_at_every_place():
    """Over steps: place 17 is uniform, and tells nothing from one step to the next."""
    u = low_discrepancies(4000, 18)
    assert u.min() >= 0 and u.max() < 1
    for place in (0, 17):
        assert kstest(u[:, place], "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(u[1:, place], u[:-1, place])[0, 1]) < 4 / np.sqrt(4000)


def test_low_discrepancy_spreads_a_batch_evenly():
    """Any n places: every interval of length 2/n holds one; the mean of u^2 varies far less than of independent u."""
    for n in (5, 16, 100):
        u = np.sort(low_discrepancies(200, n), axis=1)
        gaps = np.diff(u, axis=1, append=u[:, :1] + 1)
        assert gaps.max() < 2 / n
    means = (u**2).mean(axis=1)
    assert abs(means.mean() - 1 / 3) < 4 * means.std() / np.sqrt(200)
    independent = np.sqrt((1 / 5 - 1 / 9) / 100)
    assert means.std() < independent / 5


def test_low_discrepancy_of_a_place_does_not_depend_on_the_batch():
    key = jax.random.key(1)
    u = low_discrepancy(key, jnp.arange(64))
    for place in ([17], [40, 17, 3]):
        np.testing.assert_array_equal(low_discrepancy(key, jnp.array(place)), u[jnp.array(place)])
    assert len(np.unique(np.concatenate([u, low_discrepancy(jax.random.key(2), jnp.arange(64))]))) == 128


def test_history_remembers_the_last_losses_of_each_bin():
    """As one queue a bin would, of batches that hold few or many of one bin."""
    sampler, generator = LossAware(bins=4, length=3), np.random.default_rng(0)
    history, queues = sampler.init(), [deque(maxlen=3) for _ in range(4)]
    update = jax.jit(sampler.update)
    for step in range(12):
        quantiles, losses = generator.uniform(size=8) ** (1 + step % 3), generator.normal(size=8).astype(np.float32)
        history = update(history, jnp.asarray(quantiles, jnp.float32), losses)
        for quantile, loss in zip(quantiles, losses, strict=True):
            queues[int(4 * quantile)].append(loss)
        for bin, queue in enumerate(queues):
            if history.count[bin] >= 3:
                np.testing.assert_array_equal(np.sort(history.losses[bin]), np.sort(queue))
    assert history.count.sum() == 96 and history.count.min() >= 3


def filled(sampler, sizes):
    """A history in which every loss of bin k is sizes[k]."""
    quantiles = (np.arange(sampler.bins, dtype=np.float32) + np.float32(0.5)) / sampler.bins
    return sampler.update(sampler.init(), np.repeat(quantiles, 3), jnp.asarray(np.repeat(sizes, 3), jnp.float32))


def test_history_draws_where_losses_are_large_and_weighs_them_back():
    sampler, sizes = LossAware(bins=4, length=3), np.array([1.0, 2.0, 0.5, 4.5], np.float32)
    u = (jnp.arange(8000) + 0.5) / 8000
    quantiles, weights = map(np.asarray, sampler.sample(filled(sampler, sizes), u))
    counts = np.bincount((quantiles * 4).astype(int), minlength=4) / 8000
    np.testing.assert_allclose(counts, 0.999 * sizes / sizes.sum() + 0.001 / 4, atol=2 / 8000)
    # An expectation is what it was, here of u^2 and of 1; with the losses themselves, no variance is left.
    np.testing.assert_allclose([np.mean(weights * quantiles**2), np.mean(weights)], [1 / 3, 1], rtol=1e-3)
    np.testing.assert_allclose(weights * sizes[(quantiles * 4).astype(int)], sizes.mean(), rtol=4e-3)


def test_history_is_uniform_until_it_is_full_and_never_forgets_a_bin():
    sampler, u = LossAware(bins=4, length=3), jnp.asarray(U, jnp.float32)
    history = filled(sampler, [1.0, 2.0, 0.0, 4.0])
    assert np.asarray(sampler.probabilities(history)).min() == pytest.approx(0.001 / 4, rel=1e-5)
    for empty in (sampler.init(), history._replace(count=history.count.at[2].set(2)), filled(sampler, np.zeros(4))):
        quantiles, weights = sampler.sample(empty, u)
        np.testing.assert_allclose(quantiles, u, rtol=1e-5)
        np.testing.assert_allclose(weights, np.ones_like(weights), rtol=1e-6)
    ends = sampler.sample(history, jnp.asarray([0, 1 - 2**-24], jnp.float32))[0]
    assert ends[0] >= 0 and ends[1] < 1


def test_history_uses_the_root_of_the_mean_square():
    sampler = LossAware(bins=2, length=2, uniform=1e-6)
    history = sampler.update(sampler.init(), jnp.array([0.2, 0.2, 0.7, 0.7]), jnp.array([2.0, 14.0, 5.0, 5.0]))
    np.testing.assert_allclose(sampler.probabilities(history), [2 / 3, 1 / 3], rtol=1e-5)  # 10 and 5


def test_bad_values_are_named():
    for make, message in [
        (lambda: LogNormalTime(std=-1.0), r"LogNormalTime needs std > 0, got -1\.0"),
        (lambda: LogitNormalTime(std=0.0), r"LogitNormalTime needs std > 0, got 0\.0"),
        (lambda: GridTime(steps=1), "GridTime needs steps >= 2, got 1"),
        (lambda: LossAware(bins=0), "LossAware needs bins >= 1, got 0"),
        (lambda: LossAware(length=0), "LossAware needs length >= 1, got 0"),
        (lambda: LossAware(uniform=0.0), r"LossAware needs 0 < uniform <= 1, got 0\.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
