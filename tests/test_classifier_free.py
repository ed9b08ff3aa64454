"""Classifier-free guidance against products of Gaussians: its scores, its evaluations and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import oracles
from jdiff.guidance import classifier_free, unguided
from jdiff.prediction import Prediction
from tests.table import PROCESSES, TIMES

pytestmark = pytest.mark.usefixtures("x64")

X = np.random.default_rng(0).normal(size=(3, 2))
MEANS = np.array([[0.0, 0.0], [1.0, -0.5], [-2.0, 0.3]])  # without a class, and of classes 1 and 2


def shifted(process, calls):
    """The exact predictor of N(MEANS[label], 0.5 I), which notes the batch of each call."""

    def predict(x, t, cond):
        calls.append((x.shape[0], t.shape))
        target = oracles.gaussian(jnp.zeros(2), 0.5 * jnp.eye(2))
        alpha = process.alpha(t).reshape(-1, 1)
        mean = jnp.array(MEANS)[cond["label"]]
        centred = target.predict(process, x - alpha * mean, t)
        return Prediction(centred.x0 + mean, centred.eps)

    return predict


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5, (0.5, 1.0, 4.0)])
def test_scores_of_the_product(name, scale):
    """null + w (cond - null) is the score of p(x | class)^w p(x)^(1 - w), here a Gaussian about another mean."""
    process, t, calls = PROCESSES[name], TIMES[name][1], []
    labels = jnp.array([1, 2, 1])
    null = {"label": jnp.zeros(3, int)}
    weights = jnp.array(scale)
    denoise = classifier_free(shifted(process, calls), {"label": labels}, null, weights)
    got = jax.jit(denoise)(jnp.array(X), t)
    alpha, variance = process.alpha(t), process.alpha(t) ** 2 * 0.5 + process.sigma(t) ** 2
    centre = np.broadcast_to(scale, 3)[:, None] * MEANS[np.asarray(labels)]
    score = -(X - alpha * centre) / variance
    np.testing.assert_allclose(got.score(process, t), score, rtol=1e-9)
    np.testing.assert_allclose(process.perturb(got.x0, got.eps, t), X, rtol=1e-9)
    assert calls == [(6, (6,))]  # one evaluation of both halves


def test_a_scale_of_one_is_the_conditional_model_and_zero_the_other():
    process, calls = PROCESSES["vp"], []
    predict = shifted(process, calls)
    cond, null = {"label": jnp.array([1, 2, 2])}, {"label": jnp.zeros(3, int)}
    x, t = jnp.array(X), jnp.array([0.2, 0.5, 0.9])
    for scale, alone in ((1.0, cond), (0.0, null)):
        got, expected = (
            jax.jit(denoise)(x, t)
            for denoise in (classifier_free(predict, cond, null, scale), unguided(predict, alone))
        )
        np.testing.assert_allclose(got.x0, expected.x0, rtol=1e-12)
        np.testing.assert_allclose(got.eps, expected.eps, rtol=1e-12)
    assert [size for size, _ in calls] == [6, 3, 6, 3]


def test_every_condition_is_doubled_in_the_same_order():
    """Two conditions, the second with axes of its own: of each sample null first in both, beside its own x."""
    seen = []

    def predict(x, t, cond):
        seen.append(cond | {"x": x})
        return Prediction(x, x)

    cond = {"label": jnp.array([1, 2, 3]), "text": jnp.ones((3, 4, 2))}
    null = {"text": jnp.zeros((3, 4, 2)), "label": jnp.zeros(3, int)}
    classifier_free(predict, cond, null, 2.0)(jnp.array(X), 0.5)
    np.testing.assert_array_equal(seen[0]["label"], [0, 1, 0, 2, 0, 3])
    np.testing.assert_array_equal(seen[0]["text"][:, 0, 0], [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(seen[0]["x"], np.repeat(X, 2, axis=0))
    assert seen[0]["text"].shape == (6, 4, 2)


def test_the_scale_is_traced():
    process, calls = PROCESSES["edm"], []
    predict = shifted(process, calls)
    cond, null = {"label": jnp.array([1, 2, 2])}, {"label": jnp.zeros(3, int)}
    run = jax.jit(lambda scale: classifier_free(predict, cond, null, scale)(jnp.array(X), 1.0).x0)
    one, other = run(1.0), run(2.0)
    assert len(calls) == 1
    assert not np.allclose(one, other)


def test_bad_arguments_are_named():
    predict = lambda x, t, cond: Prediction(x, x)
    with pytest.raises(ValueError, match=r"same conditions, got \['label'\] and \['label', 'text'\]"):
        classifier_free(predict, {"label": X}, {"text": X, "label": X}, 2.0)
    with pytest.raises(ValueError, match=r"must have shape \(\) or \(3,\), got \(2,\)"):
        classifier_free(predict, {}, {}, jnp.ones(2))(jnp.array(X), 0.5)
