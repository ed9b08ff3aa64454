"""From a predictor and conditions to a denoiser (x, t) -> Prediction.

A `Prediction` is linear in its two parts at fixed (x, t), so guidance is arithmetic on them. With c and n the branches
with the condition and with the null one, and w the scale:

    classifier_free   n + w (c - n)                                           (arXiv:2207.12598)
    composed          n + sum_i w_i (c_i - n)                                 (arXiv:2206.01714)
    autoguidance      weak + w (c - weak), weak being a weaker model          (arXiv:2406.02507)
    cfg_pp            x0 as classifier_free, eps of n                         (arXiv:2406.08070)
    cfg_zero_star     s n + w (c - s n) on velocities, s = <c, n> / |n|^2     (arXiv:2503.18886)
    rescaled          classifier_free with the spread of c's x0               (arXiv:2305.08891, section 3.4)
    apg               c + (w - 1) (what of c - n is orthogonal to c) on x0    (arXiv:2410.02416)
    classifier        the score + w grad log p(y | x_t)                       (arXiv:2105.05233; 2211.17091)
    interval          any of them at some noise levels alone                  (arXiv:2404.07724)

Branches of one network run in one batched call. The scale and every other number may be traced, so that new ones
compile nothing; a scale is a scalar or one a sample, [B]. A negative prompt is a `null`: what `null` names is what is
moved away from. A learned variance is that of the conditional branch. With guidance off use `unguided`: one evaluation
of B; a scale of one gives the same numbers at the cost of both branches.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jdiff.prediction import Prediction, Velocity
from jdiff.processes import Process, match
from jdiff.processes.base import require
from jdiff.typing import Array, Cond, Denoiser, Predictor, Time

Scale = float | Array


def _branches(predict: Predictor, null: Cond, *conds: Cond) -> Callable[[Array, Time], list[Prediction]]:
    """(x, t) -> the predictions under `null` and each of `conds`, from one evaluation of all.

    Raises ValueError if the conditions' names differ.
    """
    names = [sorted(cond) for cond in [*conds, null]]
    if any(other != names[0] for other in names):
        raise ValueError(f"cond and null must name the same conditions, got {' and '.join(map(str, names))}")
    # Those of one sample side by side: what is split along the batch stays where it is.
    beside = lambda values: jnp.stack(values, axis=1).reshape(-1, *values[0].shape[1:])
    together = {name: beside([cond[name] for cond in [null, *conds]]) for name in null}
    n = 1 + len(conds)

    def evaluate(x: Array, t: Time) -> list[Prediction]:
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        prediction = predict(beside([x] * n), beside([t] * n), together)
        parts = jax.tree.map(lambda value: value.reshape(-1, n, *value.shape[1:]), prediction)
        return [jax.tree.map(lambda value, i=i: value[:, i], parts) for i in range(n)]

    return evaluate


def _extrapolate(away: Prediction, toward: Prediction, scale: Scale) -> Prediction:
    """away + scale (toward - away), with the variance of `toward`."""
    scale = match(scale, toward.x0)
    mix = lambda start, end: start + scale * (end - start)
    return dataclasses.replace(toward, x0=mix(away.x0, toward.x0), eps=mix(away.eps, toward.eps))


def _moved(process: Process, prediction: Prediction, x0: Array, t: Time) -> Prediction:
    """The prediction for the same x_t with its data moved to x0."""
    ratio = match(process.alpha(t) / process.sigma(t), x0)
    return dataclasses.replace(prediction, x0=x0, eps=prediction.eps - ratio * (x0 - prediction.x0))


def _dot(a: Array, b: Array) -> Array:
    """Inner product of each sample, with its axes kept: [B, 1, ...]."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _share(a: Array, b: Array) -> Array:
    """<a, b> / |b|^2 of each sample, and zero where b is."""
    return _dot(a, b) / jnp.maximum(_dot(b, b), jnp.finfo(b.dtype).tiny)


def unguided(predict: Predictor, cond: Cond) -> Denoiser:
    """The predictor with its conditions [B, ...] closed over: one evaluation of B."""
    return lambda x, t: predict(x, t, cond)


def classifier_free(predict: Predictor, cond: Cond, null: Cond, scale: Scale) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): null + scale (cond - null).

    `cond` and `null` name the same conditions, [B, ...] each; both branches run in one evaluation of 2B. A scale
    of one is the conditional model. Raises ValueError if the names differ.
    """
    evaluate = _branches(predict, null, cond)

    def denoise(x: Array, t: Time) -> Prediction:
        without, with_cond = evaluate(x, t)
        return _extrapolate(without, with_cond, scale)

    return denoise


def composed(predict: Predictor, conds: Sequence[Cond], null: Cond, weights: Array) -> Denoiser:
    """Weighted composition of n conditions (Liu et al. 2022, arXiv:2206.01714): null + sum_i weights_i (cond_i - null).

    One evaluation of (n + 1) B. `weights` [n] or [n, B]: a positive one is AND, a negative one NOT. The score is that
    of the product of the noised densities p_t(x) prod_i (p_t(x | cond_i) / p_t(x))^weights_i; it is not that of the
    noised product, except for clean data (`oracles/posteriors.py`). A learned variance is the null branch's. Raises
    ValueError if names differ, or for another number of weights.
    """
    weights = jnp.asarray(weights)
    if weights.ndim == 0 or len(weights) != len(conds):
        raise ValueError(f"weights must have shape [{len(conds)}], one for each condition, got {weights.shape}")
    evaluate = _branches(predict, null, *conds)

    def denoise(x: Array, t: Time) -> Prediction:
        without, *branches = evaluate(x, t)
        mix = lambda start, ends: start + sum(match(w, x) * (end - start) for w, end in zip(weights, ends, strict=True))
        x0 = mix(without.x0, [branch.x0 for branch in branches])
        return dataclasses.replace(without, x0=x0, eps=mix(without.eps, [branch.eps for branch in branches]))

    return denoise


def autoguidance(predict: Predictor, weak: Predictor, cond: Cond, scale: Scale) -> Denoiser:
    """A model guided by a weaker version of itself (Karras et al. 2024, arXiv:2406.02507): weak + scale (model - weak).

    Both see the same conditions; two networks, so two evaluations of B.
    """
    return lambda x, t: _extrapolate(weak(x, t, cond), predict(x, t, cond), scale)


def interval(guided: Denoiser, plain: Denoiser, process: Process, low: Scale, high: Scale) -> Denoiser:
    """Guidance in an interval of noise levels (Kynkäänniemi et al. 2024, arXiv:2404.07724).

    `guided` where low <= sigma / alpha <= high, and elsewhere `plain`, which is usually `unguided`: there only its B
    rows are evaluated. The ends are scalars. Raises ValueError for a t that is not a scalar.
    """

    def denoise(x: Array, t: Time) -> Prediction:
        if jnp.ndim(t):
            raise ValueError(f"interval chooses once for the whole batch: t must be a scalar, got shape {jnp.shape(t)}")
        noise = jnp.exp(-process.log_snr(t) / 2)
        return jax.lax.cond((low <= noise) & (noise <= high), guided, plain, x, t)

    return denoise


def rescaled(
    predict: Predictor, cond: Cond, null: Cond, scale: Scale, process: Process, share: float | Array
) -> Denoiser:
    """Classifier-free guidance whose x0 keeps the spread of the conditional one (Lin et al. 2023, arXiv:2305.08891).

    The guided x0 is multiplied by share std(x0 of cond) / std(guided x0) + 1 - share, std over each sample's values
    (section 3.4, where the network's output, v, is what is rescaled). One evaluation of 2B.
    """
    evaluate = _branches(predict, null, cond)
    spread = lambda value: jnp.std(value, axis=tuple(range(1, value.ndim)), keepdims=True)

    def denoise(x: Array, t: Time) -> Prediction:
        without, with_cond = evaluate(x, t)
        guided = _extrapolate(without, with_cond, scale).x0
        factor = 1 + match(share, x) * (spread(with_cond.x0) / spread(guided) - 1)
        return _moved(process, with_cond, factor * guided, t)

    return denoise


def apg(
    predict: Predictor, cond: Cond, null: Cond, scale: Scale, process: Process, *, radius: Scale, parallel: Scale
) -> Denoiser:
    """Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416), on x0 and without momentum.

    The difference d = cond - null is shortened to at most `radius` (Euclidean, over each sample's values; infinity for
    no limit), and of its part along cond only the share `parallel` is kept (eta; zero is usual, one with an infinite
    radius is classifier-free guidance). x0 is cond + (scale - 1) d. One evaluation of 2B.

    The paper's momentum adds up differences of earlier steps. A denoiser is a function of (x, t) and has no earlier
    steps, so momentum is zero here.
    """
    evaluate = _branches(predict, null, cond)

    def denoise(x: Array, t: Time) -> Prediction:
        without, with_cond = evaluate(x, t)
        difference = with_cond.x0 - without.x0
        difference *= jnp.minimum(match(radius, x) / jnp.sqrt(_dot(difference, difference)), 1)
        along = _share(difference, with_cond.x0) * with_cond.x0
        update = difference + (match(parallel, x) - 1) * along
        return _moved(process, with_cond, with_cond.x0 + (match(scale, x) - 1) * update, t)

    return denoise


def cfg_pp(predict: Predictor, cond: Cond, null: Cond, scale: Scale) -> Denoiser:
    """CFG++ (Chung et al. 2024, arXiv:2406.08070): x0 = null + scale (cond - null), with the null branch's noise.

    A scale in [0, 1] is usual. The prediction is not consistent with x on purpose: a solver goes on from
    alpha x0 + sigma eps, so it renoises along the unconditional eps (`samplers/base.py`). One evaluation of 2B.
    """
    evaluate = _branches(predict, null, cond)

    def denoise(x: Array, t: Time) -> Prediction:
        without, with_cond = evaluate(x, t)
        return dataclasses.replace(_extrapolate(without, with_cond, scale), eps=without.eps)

    return denoise


def cfg_zero_star(
    predict: Predictor, cond: Cond, null: Cond, scale: Scale, process: Process, zero_from: float | Array
) -> Denoiser:
    """CFG-Zero* (Fan et al. 2025, arXiv:2503.18886): s null + scale (cond - s null) on velocities, zero at the start.

    s = <cond, null> / |null|^2 is each sample's best multiple of the null velocity. At times from `zero_from` on, the
    velocity is zero, so that x stays: a time between the grid's first two makes it the paper's zero-init of one step;
    infinity switches it off. One evaluation of 2B.
    """
    evaluate = _branches(predict, null, cond)

    def denoise(x: Array, t: Time) -> Prediction:
        branches = evaluate(x, t)
        without, with_cond = (branch.velocity(process, t) for branch in branches)
        base = _share(with_cond, without) * without
        velocity = base + match(scale, x) * (with_cond - base)
        velocity = jnp.where(match(t, x) >= zero_from, 0, velocity)
        guided = Velocity().prediction(process, velocity, x, t)
        return dataclasses.replace(branches[1], x0=guided.x0, eps=guided.eps)

    return denoise


def classifier(
    predict: Predictor, cond: Cond, log_weight: Callable[[Array, Time], Array], scale: Scale, process: Process
) -> Denoiser:
    """Guidance by a gradient: the score of p_t(x) exp(scale log_weight(x, t)), for log_weight (x, t) -> [B].

    Classifier guidance (Dhariwal and Nichol 2021, arXiv:2105.05233): log p(y | x_t) of a classifier of noisy data.
    Discriminator guidance (Kim et al. 2022, arXiv:2211.17091): the logit of a discriminator of noisy data, which is the
    log-ratio of the data's density to the model's. One evaluation of B and one gradient of the weight.

    At a zero signal-to-noise ratio the gradient says nothing about x0: such a t is a ValueError where its value is
    known, and gives NaN where it is traced. Raises ValueError for a weight of another shape.
    """

    def total(x: Array, t: Time) -> Array:
        weight = log_weight(x, t)
        if weight.shape != x.shape[:1]:
            raise ValueError(f"log_weight must have shape {x.shape[:1]}, one a sample, got {weight.shape}")
        return weight.sum()

    def denoise(x: Array, t: Time) -> Prediction:
        prediction, alpha, sigma = predict(x, t, cond), process.alpha(t), process.sigma(t)
        require((alpha > 0).all(), f"a gradient says nothing about the data at t = {t}, where alpha is zero")
        push = match(scale, x) * jax.grad(total)(x, t)
        x0 = prediction.x0 + match(sigma**2 / alpha, x) * push
        return dataclasses.replace(prediction, x0=x0, eps=prediction.eps - match(sigma, x) * push)

    return denoise
