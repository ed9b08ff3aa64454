"""Losses against expectations known in closed form, and the distributions that times are drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm, uniform

from jdiff import rng
from jdiff.losses import EDMLoss, LogNormalTime, SimpleLoss, UniformTime, VelocityLoss, diffusion_loss, noise
from jdiff.prediction import EDMPreconditioning, Prediction, predictor
from jdiff.processes import EDM, VP, RectifiedFlow
from tests.table import PROCESSES, TIMES

LOSSES = {"simple": SimpleLoss(), "edm": EDMLoss(sigma_data=0.7), "velocity": VelocityLoss()}
TIME_SAMPLING = {"uniform": UniformTime(), "log_normal": LogNormalTime()}


def keys_of(n):
    return rng.per_example(jax.random.key(0), jnp.arange(n))


def pair(shape, seed=0):
    """Data and noise, float64."""
    return Prediction(*jnp.array(np.random.default_rng(seed).normal(size=(2, *shape))))


def truthful(truth):
    """A predictor that knows the answer."""
    return lambda x, t, cond: truth


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", PROCESSES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_truth_costs_nothing_and_an_error_costs_its_square(name, process_name):
    """Zero at the truth; quadratic in the error; each example on its own; the mean, not the sum, over its values."""
    process, t, loss = PROCESSES[process_name], jnp.array(TIMES[process_name]), LOSSES[name]
    truth, error = pair((3, 4, 5)), pair((3, 4, 5), seed=1)
    at = lambda size: loss(process, jax.tree.map(lambda a, b: a + size * b, truth, error), truth, t)
    np.testing.assert_array_equal(at(0), np.zeros(3))
    once = at(1)
    assert once.shape == (3,) and (once > 0).all()
    np.testing.assert_allclose(at(-3), 9 * once, rtol=1e-9)
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a], axis=2), (truth, error))
    wider = loss(process, jax.tree.map(jnp.add, *twice), twice[0], t)
    np.testing.assert_allclose(wider, once, rtol=1e-9)
    only_last = jax.tree.map(lambda a, b: a.at[2].add(b[2]), truth, error)
    np.testing.assert_allclose(loss(process, only_last, truth, t), [0, 0, once[2]], rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", PROCESSES)
def test_what_one_unit_of_error_costs(process_name):
    """A prediction consistent with x that is wrong by one in x0 is wrong by alpha / sigma in eps."""
    process, t = PROCESSES[process_name], jnp.array(TIMES[process_name])
    level = np.asarray(process.sigma(t) / process.alpha(t))
    truth = pair((3, 4))
    wrong = Prediction(truth.x0 + 1, truth.eps - (1 / level)[:, None])
    np.testing.assert_allclose(SimpleLoss()(process, wrong, truth, t), level**-2, rtol=1e-7)
    # EDM's weight is the precision of the data given x: that of the noise at this level, plus the data's own.
    np.testing.assert_allclose(EDMLoss(sigma_data=0.7)(process, wrong, truth, t), level**-2 + 0.7**-2, rtol=1e-7)
    # A path through the same x: d(x0)/dt by differences of the two straight paths.
    step = 1e-6 * np.asarray(t)
    moved = lambda p, sign: np.asarray(process.perturb(p.x0, p.eps, t + sign * step))
    gap = (moved(wrong, 1) - moved(wrong, -1) - moved(truth, 1) + moved(truth, -1)) / (2 * step[:, None])
    np.testing.assert_allclose(VelocityLoss()(process, wrong, truth, t), (gap**2).mean(1), rtol=1e-5)


def test_velocity_of_rectified_flow_is_noise_minus_data():
    truth, guess = pair((4, 6)), pair((4, 6), seed=2)
    got = VelocityLoss()(RectifiedFlow(), guess, truth, jnp.array([0.01, 0.3, 0.8, 1.0]))
    expected = np.mean(np.square((guess.eps - guess.x0) - (truth.eps - truth.x0)), axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("process", [EDM(), VP()], ids=["edm", "vp"])
def test_edm_loss_of_a_zero_network_is_one_at_every_noise_level(process):
    """With its preconditioning, on data N(0, sigma_data^2): the reason for the weight."""
    data, n = 0.5, 4000
    predict = predictor(lambda x, label, cond: jnp.zeros_like(x), process, EDMPreconditioning(sigma_data=data))
    x0 = data * jax.random.normal(jax.random.key(1), (n, 32))
    eps = jax.random.normal(jax.random.key(2), x0.shape)
    for t in np.geomspace(*process.time_span, 7, dtype=np.float32)[1:]:
        t = jnp.full(n, t)
        losses = EDMLoss(sigma_data=data)(process, predict(process.perturb(x0, eps, t), t, {}), Prediction(x0, eps), t)
        # 32 n squares of unit normals: a standard error of sqrt(2 / (32 n)), and four of them
        assert abs(float(losses.mean()) - 1) < 4 * np.sqrt(2 / x0.size), t[0]


def test_losses_from_keys_are_those_of_their_parts():
    """The time and the noise of `noise`; the network sees x_t, t and the conditions."""
    process, keys, x0 = VP(), keys_of(8), jax.random.normal(jax.random.key(3), (8, 3, 2))
    t, eps = noise(keys, process, UniformTime(), x0)
    seen = []

    def predict(x, time, cond):
        seen.append((x, time, cond))
        return Prediction(jnp.zeros_like(x), jnp.zeros_like(x))

    losses, times = diffusion_loss(keys, predict, process, SimpleLoss(), UniformTime(), x0, {"label": jnp.arange(8)})
    np.testing.assert_array_equal(times, t)
    np.testing.assert_allclose(losses, np.mean(np.square(eps), axis=(1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(seen[0][1], t)
    np.testing.assert_array_equal(seen[0][2]["label"], np.arange(8))
    np.testing.assert_allclose(seen[0][0], process.perturb(x0, eps, t), rtol=1e-6)
    perfect, _ = diffusion_loss(
        keys, truthful(Prediction(x0, eps)), process, EDMLoss(sigma_data=0.5), UniformTime(), x0, {}
    )
    np.testing.assert_array_equal(perfect, np.zeros(8))


@pytest.mark.parametrize("process_name", PROCESSES)
def test_uniform_times(process_name):
    process = PROCESSES[process_name]
    low, high = process.time_span
    t, _ = noise(keys_of(20_000), process, UniformTime(), jnp.zeros((20_000, 1)))
    assert t.dtype == jnp.float32 and low <= t.min() and t.max() <= high
    assert kstest(np.asarray(t), uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize("process_name", PROCESSES)
def test_log_normal_times(process_name):
    """log(sigma / alpha) is normal; what would leave the span stays at its ends: here half of it at the lower."""
    process, times = PROCESSES[process_name], LogNormalTime(mean=-0.4, std=0.9)
    t, _ = noise(keys_of(20_000), process, times, jnp.zeros((20_000, 1)))
    level = np.log(np.asarray(process.sigma(t), float) / np.asarray(process.alpha(t), float))
    assert kstest(level, norm(-0.4, 0.9).cdf).pvalue > 1e-3
    narrow = EDM(sigma_min=np.exp(-0.4), sigma_max=1.2)
    t, _ = noise(keys_of(20_000), narrow, times, jnp.zeros((20_000, 1)))
    assert t.min() == np.float32(narrow.sigma_min) and t.max() == np.float32(1.2)
    assert abs(np.mean(t == t.min()) - 0.5) < 4 * np.sqrt(0.25 / t.size)


@pytest.mark.parametrize("name", TIME_SAMPLING)
def test_an_examples_time_and_noise_do_not_depend_on_its_batch(name):
    """To the bit: alone, at another place and among others."""
    draw = jax.jit(
        lambda index: noise(
            rng.per_example(jax.random.key(3), index), EDM(), TIME_SAMPLING[name], jnp.zeros((len(index), 4, 3))
        )
    )
    t, eps = draw(jnp.arange(64))
    for index in ([17], [40, 17, 3]):
        some_t, some_eps = draw(jnp.array(index))
        np.testing.assert_array_equal(some_t, t[jnp.array(index)])
        np.testing.assert_array_equal(some_eps, eps[jnp.array(index)])
    assert len(np.unique(t)) == len(np.unique(eps[:, 0, 0])) == 64


def test_time_and_noise_are_independent():
    """The first normal of an example says nothing about its time."""
    t, eps = noise(keys_of(20_000), EDM(), LogNormalTime(), jnp.zeros((20_000, 2)))
    for column in np.asarray(eps).T:
        assert abs(np.corrcoef(np.log(t), column)[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(np.corrcoef(np.asarray(eps).T)[0, 1]) < 4 / np.sqrt(20_000)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="EDMLoss needs sigma_data > 0, got 0"):
        EDMLoss(sigma_data=0)
    with pytest.raises(ValueError, match=r"LogNormalTime needs std > 0, got -1\.0"):
        LogNormalTime(std=-1.0)
