"""Every guidance against closed forms: a mixture of classes with exact posteriors, and Gaussians."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import guidance, oracles
from jdiff.prediction import Prediction
from jdiff.samplers import DDIM, integrate
from tests.table import PROCESSES, TIMES, two_modes
from tests.test_oracles import labelled

pytestmark = pytest.mark.usefixtures("x64")

# A mixture of three classes whose every score and posterior is known.
CLASSES = 3
LABELS = np.array([0, 1, 2, 1])
COND, NULL = {"label": LABELS}, {"label": np.full(4, CLASSES)}
POINTS = np.random.default_rng(1).normal(size=(4, 2))


def noted(predict, rows):
    """The predictor with a variance that tells its branches apart; `rows` receives the batch of each evaluation run."""

    def counted(x, t, cond):
        jax.debug.callback(lambda: rows.append(x.shape[0]))
        return dataclasses.replace(
            predict(x, t, cond), variance=jnp.ones_like(x) * cond["label"][:, None].astype(x.dtype)
        )

    return counted


def posterior_of(target, process):
    """log p(label | x_t), [4], of `LABELS`."""
    return lambda x, t: jnp.take_along_axis(target.log_posterior(process, x, t), LABELS[:, None], 1)[:, 0]


def guided(name, process, predict, scale, rows):
    """Each guidance, at settings that change what it does; `scale` is what all of them have."""
    predict = noted(predict, rows)
    others = {
        "classifier_free": lambda: guidance.classifier_free(predict, COND, NULL, scale),
        "composed": lambda: guidance.composed(predict, [COND], NULL, scale[None]),
        "autoguidance": lambda: guidance.autoguidance(predict, lambda x, t, cond: predict(x, t, NULL), COND, scale),
        "interval": lambda: guidance.interval(
            guidance.classifier_free(predict, COND, NULL, scale), guidance.unguided(predict, COND), process, 0.0, 1e9
        ),
        "rescaled": lambda: guidance.rescaled(predict, COND, NULL, scale, process, 0.7),
        "apg": lambda: guidance.apg(predict, COND, NULL, scale, process, radius=0.1, parallel=0.2),
        "cfg_pp": lambda: guidance.cfg_pp(predict, COND, NULL, scale),
        "cfg_zero_star": lambda: guidance.cfg_zero_star(predict, COND, NULL, scale, process, jnp.inf),
        "classifier": lambda: guidance.classifier(predict, NULL, posterior_of(labelled(), process), scale, process),
    }
    return others[name]() if name in others else others


ROWS = {key: [8] for key in guided("", None, None, None, None)} | {"autoguidance": [4, 4], "classifier": [4]}


@pytest.mark.parametrize("name", ROWS)
def test_every_guidance(name):
    """A scale of one is the conditional model; new scales, scalar or one a sample, compile nothing; the rows evaluated.

    The prediction is consistent with x (but for CFG++, which keeps the null branch's noise), and its variance is that
    of the conditional branch (for composition and classifiers, the null's).
    """
    process, t, rows, compiled = PROCESSES["vp"], jnp.array(0.3), [], []
    predict, x = labelled().predictor(process), jnp.array(POINTS)

    @jax.jit
    def run(x, t, scale):
        compiled.append(scale)
        return guided(name, process, predict, scale, rows)(x, t)

    scales = jnp.array([1.0, 0.4, 3.0, 2.0])
    one, many = run(x, t, jnp.ones(4)), run(x, t, scales)
    jax.effects_barrier()
    assert len(compiled) == 1
    assert rows == 2 * ROWS[name]
    expected, null = predict(x, t, COND), predict(x, t, NULL)
    np.testing.assert_allclose(one.x0, expected.x0, rtol=1e-9)
    np.testing.assert_allclose(many.x0[0], expected.x0[0], rtol=1e-9)
    assert (np.abs(many.x0 - expected.x0)[1:].max(1) > 1e-3).all()
    if name == "cfg_pp":
        np.testing.assert_allclose(many.eps, null.eps, rtol=1e-12)
    else:
        np.testing.assert_allclose(process.perturb(many.x0, many.eps, t), x, rtol=1e-9)
    label = np.full(4, CLASSES) if name in ("composed", "classifier") else LABELS
    np.testing.assert_array_equal(many.variance, np.stack([label, label], axis=-1))


@pytest.mark.parametrize("name", PROCESSES)
def test_classifier_guidance_is_classifier_free_guidance(name):
    """With the exact posterior of the classes, at any scale; at one it is the conditional model."""
    process, target, x, t = PROCESSES[name], labelled(), jnp.array(POINTS), jnp.asarray(TIMES[name][1])
    predict = target.predictor(process)

    @jax.jit
    def run(x, scale):
        by_gradient = guidance.classifier(predict, NULL, posterior_of(target, process), scale, process)
        free = guidance.classifier_free(predict, COND, NULL, scale)
        return by_gradient(x, t), free(x, t), predict(x, t, COND)

    for scale in (1.0, 2.5):
        by_gradient, free, conditional = run(x, scale)
        np.testing.assert_allclose(by_gradient.x0, free.x0, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(by_gradient.eps, free.eps, rtol=1e-8, atol=1e-10)
        if scale == 1:
            np.testing.assert_allclose(by_gradient.x0, conditional.x0, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_a_discriminator_corrects_a_wrong_model(name):
    """With the exact log-ratio of the densities, exactly."""
    process, model, data = PROCESSES[name], two_modes(), labelled().mixture
    x, t = jnp.array(POINTS), jnp.asarray(TIMES[name][1])
    logit = lambda x, t: data.log_density(process, x, t) - model.log_density(process, x, t)
    wrong = lambda x, t, cond: model.predict(process, x, t)
    got = jax.jit(guidance.classifier(wrong, {}, logit, 1.0, process))(x, t)
    expected = data.predict(process, x, t)
    np.testing.assert_allclose(got.x0, expected.x0, rtol=1e-8)
    np.testing.assert_allclose(got.eps, expected.eps, rtol=1e-8)


def one_of(targets, process):
    """The exact predictor of the Gaussian that the label names."""

    def predict(x, t, cond):
        each = [target.predict(process, x, t) for target in targets]
        here = lambda *values: jnp.stack(values)[cond["label"], jnp.arange(len(x))]
        return jax.tree.map(here, *each)

    return predict


def gaussians():
    """Of label 0, which stands for no condition, 1 and 2."""
    return [
        oracles.gaussian(np.array(mean), np.array(covariance))
        for mean, covariance in [
            ([0.1, 0.0], [[2.0, 0.3], [0.3, 1.5]]),
            ([0.9, -0.2], [[0.5, 0.1], [0.1, 0.7]]),
            ([-0.4, 0.6], [[0.8, -0.2], [-0.2, 0.6]]),
        ]
    ]


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, -0.4)], ids=["and", "and_not"])
def test_composition_of_gaussians(name, weights):
    """The score is that of the product of the noised Gaussians, in closed form; NOT is a negative weight."""
    process, t, x = PROCESSES[name], TIMES[name][1], jnp.array(POINTS)
    labels = [{"label": jnp.full(4, i)} for i in range(3)]
    denoise = guidance.composed(one_of(gaussians(), process), labels[1:], labels[0], jnp.array(weights))
    alpha, sigma = process.alpha(t), process.sigma(t)
    noised = [
        oracles.gaussian(alpha * g.means[0], alpha**2 * g.covariances()[0] + sigma**2 * jnp.eye(2)) for g in gaussians()
    ]
    exact = oracles.product(noised, np.array([1 - sum(weights), *weights]))
    score = jax.grad(lambda x: exact.log_density(PROCESSES["ve"], x, 0.0).sum())(x)
    np.testing.assert_allclose(jax.jit(denoise)(x, t).score(process, t), score, rtol=1e-8, atol=1e-10)


def test_composition_of_clean_data_is_the_product():
    """At little noise, the score of the data's product, with an error of the order of the noise's variance."""
    process, x = PROCESSES["edm"], jnp.array(POINTS)
    labels = [{"label": jnp.full(4, i)} for i in range(3)]
    weights = jnp.array([[1.0, 1.0, 0.5, 0.5], [1.0, 0.2, 1.0, -0.1]])  # of each sample
    denoise = jax.jit(guidance.composed(one_of(gaussians(), process), labels[1:], labels[0], weights))
    scores = []
    for a, b in weights.T:
        exact = oracles.product(gaussians(), jnp.stack([1 - a - b, a, b]))
        scores.append(jax.grad(lambda x, exact=exact: exact.log_density(process, x, 0.0).sum())(x))
    score = jnp.stack(scores)[jnp.arange(4), jnp.arange(4)]
    error = [np.abs(denoise(x, t).score(process, t) - score).max() for t in (1e-2, 1e-3)]
    assert error[0] < 1e-2
    np.testing.assert_allclose(error[1] / error[0], 1e-2, rtol=0.02)


def test_autoguidance_takes_a_weak_model():
    """The score is that of N(0, 0.5 I)^3 / N(0, 2 I)^2, noised."""
    process, t, x = PROCESSES["flow"], jnp.asarray(0.4), jnp.array(POINTS)
    good, weak = (oracles.gaussian(jnp.zeros(2), v * jnp.eye(2)) for v in (0.5, 2.0))
    as_predictor = lambda target: lambda x, t, cond: target.predict(process, x, t)
    got = guidance.autoguidance(as_predictor(good), as_predictor(weak), {}, 3.0)(x, t)
    variances = [0.6**2 * v + 0.4**2 for v in (0.5, 2.0)]
    np.testing.assert_allclose(got.score(process, t), -x * (3 / variances[0] - 2 / variances[1]), rtol=1e-9)


def test_interval_evaluates_the_conditional_model_alone_outside_it():
    """Rows counted as they run; both ends belong to the interval, which is traced; the last time has no signal."""
    process, rows, compiled, x = PROCESSES["flow"], [], [], jnp.array(POINTS)
    predict = labelled().predictor(process)

    @jax.jit
    def run(x, t, low, high):
        compiled.append(t)
        free = guidance.classifier_free(noted(predict, rows), COND, NULL, 3.0)
        return guidance.interval(free, guidance.unguided(noted(predict, rows), COND), process, low, high)(x, t)

    inside = guidance.classifier_free(predict, COND, NULL, 3.0)
    outside = guidance.unguided(predict, COND)
    noise = lambda t: jnp.exp(-process.log_snr(t) / 2)
    for t, low, high, within in [
        (0.5, 0.5, 2.0, True),
        (0.2, noise(0.2), 2.0, True),
        (0.2, 0.0, noise(0.2), True),
        (0.2, noise(0.2) * 1.001, 2.0, False),
        (0.9, 0.5, 2.0, False),
        (1.0, 0.5, 2.0, False),
        (1.0, 0.5, np.inf, True),
    ]:
        rows.clear()
        got = run(x, jnp.asarray(t), jnp.asarray(low), jnp.asarray(high))
        jax.effects_barrier()
        assert rows == [8 if within else 4]
        np.testing.assert_allclose(got.x0, (inside if within else outside)(x, jnp.asarray(t)).x0, rtol=1e-9)
    assert len(compiled) == 1


def test_rescaling_keeps_the_spread():
    """Of each sample's x0, over all its axes: with a share of one, the conditional one's; in between, in proportion."""
    process, t = PROCESSES["vp"], jnp.asarray(0.4)
    x = jnp.array(np.random.default_rng(3).normal(size=(3, 4, 4, 2)))

    def predict(x, t, cond):
        x0 = jnp.tanh(cond["gain"][:, None, None, None] * x + 0.3)
        sigma = process.sigma(t)[:, None, None, None]
        return Prediction(x0, (x - process.alpha(t)[:, None, None, None] * x0) / sigma)

    cond, null = {"gain": jnp.array([1.0, 2.0, -1.0])}, {"gain": jnp.array([0.3, 0.1, 0.2])}
    spread = lambda value: np.std(value, axis=(1, 2, 3))
    run = jax.jit(lambda share: guidance.rescaled(predict, cond, null, 5.0, process, share)(x, t))
    free = guidance.classifier_free(predict, cond, null, 5.0)(x, t)
    with_cond = spread(predict(x, jnp.full(3, t), cond).x0)
    assert (spread(free.x0) > 1.5 * with_cond).all()
    for share in (0.0, 0.4, 1.0):
        got = run(share)
        np.testing.assert_allclose(spread(got.x0), share * with_cond + (1 - share) * spread(free.x0), rtol=1e-9)
        ratio = got.x0 / free.x0  # one factor a sample
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1, :1], ratio.shape), rtol=1e-9)
        np.testing.assert_allclose(process.perturb(got.x0, got.eps, t), x, rtol=1e-9)


def test_projected_guidance():
    """Without a limit and with all of the parallel part, classifier-free guidance; otherwise by NumPy's projections."""
    process, t, x, scale = PROCESSES["edm"], jnp.asarray(1.0), jnp.array(POINTS), 4.0
    predict = labelled().predictor(process)
    run = jax.jit(
        lambda radius, parallel: guidance.apg(predict, COND, NULL, scale, process, radius=radius, parallel=parallel)(
            x, t
        )
    )
    free = guidance.classifier_free(predict, COND, NULL, scale)(x, t)
    for part in ("x0", "eps"):
        np.testing.assert_allclose(getattr(run(np.inf, 1.0), part), getattr(free, part), rtol=1e-9)
    conditional = np.asarray(predict(x, t, COND).x0)
    whole = (np.asarray(free.x0) - conditional) / (scale - 1)  # cond - null
    for radius, parallel in [(np.inf, 0.0), (np.inf, 0.3), (0.2, 0.3), (0.2, 1.0)]:
        update = (np.asarray(run(radius, parallel).x0) - conditional) / (scale - 1)
        for row in range(4):
            axis = conditional[row] / np.linalg.norm(conditional[row])
            length = np.linalg.norm(whole[row])
            kept = whole[row] * (min(length, radius) / length)
            np.testing.assert_allclose(axis @ update[row], parallel * (axis @ kept), atol=1e-10)
            across = np.array([-axis[1], axis[0]])
            np.testing.assert_allclose(across @ update[row], across @ kept, atol=1e-10)
    lengths = np.linalg.norm(whole, axis=1)
    assert lengths.min() < 0.2 < lengths.max()  # the limit binds for some


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_a_step_of_cfg_pp(name):
    """Through a solver: DDIM's step with CFG++ at w is its step with guidance at w / (1 - sqrt(SNR_t / SNR_s)).

    For x_s depends on the guided difference of x0 alone, by alpha_s in one and alpha_s - sigma_s alpha_t / sigma_t in
    the other (section 3.3 of the paper: the scale that changes along the steps).
    """
    process, x, scale = PROCESSES[name], jnp.array(POINTS), 0.6
    predict = labelled().predictor(process)
    grid = jnp.array([TIMES[name][1], TIMES[name][0]])
    same = scale / -jnp.expm1((process.log_snr(grid[0]) - process.log_snr(grid[1])) / 2)
    keys = jax.random.split(jax.random.key(0), 4)
    plus, free = (
        integrate(keys, x, denoise, process, DDIM(), grid)
        for denoise in (
            guidance.cfg_pp(predict, COND, NULL, scale),
            guidance.classifier_free(predict, COND, NULL, same),
        )
    )
    np.testing.assert_allclose(plus, free, rtol=1e-9)


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "subvp"])
def test_zero_star(name):
    """At scale zero the best multiple of the null velocity, which leaves a rest orthogonal to it; at first, nothing."""
    process, t, x = PROCESSES[name], jnp.asarray(TIMES[name][1]), jnp.array(POINTS)
    predict = labelled().predictor(process)
    run = jax.jit(lambda scale, start: guidance.cfg_zero_star(predict, COND, NULL, scale, process, start)(x, t))
    velocity = lambda prediction: np.asarray(prediction.velocity(process, t))
    base, with_cond, null = (velocity(p) for p in (run(0.0, np.inf), predict(x, t, COND), predict(x, t, NULL)))
    np.testing.assert_allclose(((with_cond - base) * null).sum(1), 0, atol=1e-9 * (null**2).sum(1).max())
    np.testing.assert_allclose(base[:, 0] * null[:, 1], base[:, 1] * null[:, 0], rtol=1e-7)  # parallel
    np.testing.assert_allclose(velocity(run(2.5, np.inf)), base + 2.5 * (with_cond - base), rtol=1e-8, atol=1e-10)
    still = run(2.5, t)
    np.testing.assert_allclose(velocity(still), 0, atol=1e-12)
    np.testing.assert_allclose(process.perturb(still.x0, still.eps, t), x, rtol=1e-9)


def test_bad_guidance_is_named():
    process, x = PROCESSES["flow"], jnp.array(POINTS)
    predict = labelled().predictor(process)
    with pytest.raises(ValueError, match=r"weights must have shape \[2\], one for each condition, got \(3,\)"):
        guidance.composed(predict, [COND, COND], NULL, jnp.ones(3))
    with pytest.raises(ValueError, match=r"same conditions, got \['text'\] and \['label'\]"):
        guidance.composed(predict, [{"text": x}], NULL, jnp.ones(1))
    free = guidance.classifier_free(predict, COND, NULL, 2.0)
    with pytest.raises(ValueError, match=r"t must be a scalar, got shape \(4,\)"):
        guidance.interval(free, free, process, 0.0, 1.0)(x, jnp.full(4, 0.5))
    with pytest.raises(ValueError, match=r"log_weight must have shape \(4,\), one a sample, got \(4, 3\)"):
        guidance.classifier(predict, NULL, lambda x, t: labelled().log_posterior(process, x, t), 1.0, process)(x, 0.5)
    with pytest.raises(ValueError, match=r"says nothing about the data at t = 1.0, where alpha is zero"):
        guidance.classifier(predict, NULL, posterior_of(labelled(), process), 1.0, process)(x, 1.0)
