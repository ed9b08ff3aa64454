"""Losses against expectations known in closed form, and against each other where they are one loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import rng
from jdiff.losses import (
    EDMLoss,
    LikelihoodLoss,
    MinSNRLoss,
    P2Loss,
    ScoreMatchingLoss,
    SimpleLoss,
    UniformTime,
    VelocityLoss,
    VLoss,
    X0Loss,
    diffusion_loss,
    noise,
)
from jdiff.prediction import EDMPreconditioning, Prediction, V, predictor
from jdiff.processes import EDM, VP, RectifiedFlow
from tests.table import PROCESSES, TIMES

LOSSES = {
    "simple": SimpleLoss(),
    "x0": X0Loss(),
    "v": VLoss(),
    "velocity": VelocityLoss(),
    "edm": EDMLoss(sigma_data=0.7),
    "likelihood": LikelihoodLoss(),
    "min_snr": MinSNRLoss(),
    "p2": P2Loss(),
    "score": ScoreMatchingLoss(weight=lambda process, t: process.sigma(t)),
}


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


def truth_and_error(process, t):
    """A prediction, and one consistent with the same x that is wrong by one in x0."""
    truth = pair((3, 4))
    return truth, Prediction(truth.x0 + 1, truth.eps - (process.alpha(t) / process.sigma(t))[:, None])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", PROCESSES)
def test_what_one_unit_of_error_costs(process_name):
    """A prediction consistent with x that is wrong by one in x0 is wrong by alpha / sigma in eps."""
    process, t = PROCESSES[process_name], jnp.array(TIMES[process_name])
    level = np.asarray(process.sigma(t) / process.alpha(t))
    truth, wrong = truth_and_error(process, t)
    np.testing.assert_allclose(X0Loss()(process, wrong, truth, t), np.ones(3), rtol=1e-7)
    # v turns (x0, eps) by a right angle: its error is the whole error's length, times that of (alpha, sigma).
    length = np.hypot(1, 1 / level) * np.hypot(process.alpha(t), process.sigma(t))
    np.testing.assert_allclose(VLoss()(process, wrong, truth, t), length**2, rtol=1e-7)
    np.testing.assert_allclose(SimpleLoss()(process, wrong, truth, t), level**-2, rtol=1e-7)
    # EDM's weight is the precision of the data given x: that of the noise at this level, plus the data's own.
    np.testing.assert_allclose(EDMLoss(sigma_data=0.7)(process, wrong, truth, t), level**-2 + 0.7**-2, rtol=1e-7)
    # A path through the same x: d(x0)/dt by differences of the two straight paths.
    step = 1e-6 * np.asarray(t)
    moved = lambda p, sign: np.asarray(process.perturb(p.x0, p.eps, t + sign * step))
    gap = (moved(wrong, 1) - moved(wrong, -1) - moved(truth, 1) + moved(truth, -1)) / (2 * step[:, None])
    np.testing.assert_allclose(VelocityLoss()(process, wrong, truth, t), (gap**2).mean(1), rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", PROCESSES)
def test_one_loss_in_several_spaces(process_name):
    """As documented: a weight on one error is another weight on another error."""
    process, t = PROCESSES[process_name], jnp.array(TIMES[process_name])
    truth, wrong = truth_and_error(process, t)
    cost = lambda loss: np.asarray(loss(process, wrong, truth, t))
    score = lambda weight: cost(ScoreMatchingLoss(weight=weight))
    np.testing.assert_allclose(score(lambda p, t: p.sigma(t) ** 2), cost(SimpleLoss()), rtol=1e-9)
    np.testing.assert_allclose(score(lambda p, t: p.diffusion(t) ** 2), cost(LikelihoodLoss()), rtol=1e-9)
    ratio = np.asarray((process.alpha(t) / process.sigma(t)) ** 2)
    for gamma in (0.1, 5.0):
        on_eps = np.minimum(1, gamma / ratio) * cost(SimpleLoss())
        np.testing.assert_allclose(cost(MinSNRLoss(gamma=gamma)), on_eps, rtol=1e-9)
    np.testing.assert_allclose(cost(P2Loss(gamma=0)), cost(SimpleLoss()), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_weights_of_a_variance_preserving_process():
    """Min-SNR on v is min(SNR, gamma) / (SNR + 1); P2 with k = 1 is sigma^2 on eps; and numbers by hand."""
    process, t = VP(), jnp.array(TIMES["vp"])
    truth, wrong = truth_and_error(process, t)
    cost = lambda loss: np.asarray(loss(process, wrong, truth, t))
    ratio = np.asarray((process.alpha(t) / process.sigma(t)) ** 2)
    assert ratio[0] > 5 > ratio[1]  # both sides of the limit
    np.testing.assert_allclose(cost(MinSNRLoss()), np.minimum(ratio, 5) / (ratio + 1) * cost(VLoss()), rtol=1e-9)
    np.testing.assert_allclose(cost(P2Loss()), np.asarray(process.sigma(t)) ** 2 * cost(SimpleLoss()), rtol=1e-9)
    seven = process.time(jnp.log(7.0) * jnp.ones(3))
    truth, wrong = truth_and_error(process, seven)
    for loss, expected in [(P2Loss(k=2.0, gamma=0.5), 7 / 3), (P2Loss(k=2.0), 7 / 9), (MinSNRLoss(gamma=3.0), 3)]:
        np.testing.assert_allclose(loss(process, wrong, truth, seven), [expected] * 3, rtol=1e-9)


def test_losses_and_gradients_are_finite_without_signal():
    """Rectified flow at t = 1, in float32."""
    process, truth = RectifiedFlow(), pair((2, 3))
    truth = jax.tree.map(lambda value: value.astype(jnp.float32), truth)
    t = jnp.ones(2)
    x = process.perturb(truth.x0, truth.eps, t)
    costs = lambda raw: {
        name: loss(process, V().prediction(process, raw, x, t), truth, t).sum() for name, loss in LOSSES.items()
    }
    for name, gradient in jax.jit(jax.jacrev(costs))(0.5 * x).items():
        assert jnp.isfinite(gradient).all(), name
    for name, value in costs(0.5 * x).items():
        assert jnp.isfinite(value), name


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


def test_bad_values_are_named():
    for make, message in [
        (lambda: EDMLoss(sigma_data=0), "EDMLoss needs sigma_data > 0, got 0"),
        (lambda: MinSNRLoss(gamma=-2.0), r"MinSNRLoss needs gamma > 0, got -2\.0"),
        (lambda: P2Loss(k=0), "P2Loss needs k > 0, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
