"""From a predictor and conditions to a denoiser (x, t) -> Prediction.

A `Prediction` is linear in its two parts at fixed (x, t), so guidance is arithmetic on the pytree.
"""

import jax
import jax.numpy as jnp

from jdiff.prediction import Prediction
from jdiff.processes import match
from jdiff.typing import Array, Cond, Denoiser, Predictor, Time


def unguided(predict: Predictor, cond: Cond) -> Denoiser:
    """The predictor with its conditions [B, ...] closed over: one evaluation of B."""
    return lambda x, t: predict(x, t, cond)


def classifier_free(predict: Predictor, cond: Cond, null: Cond, scale: float | Array) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): null + scale (cond - null).

    `cond` and `null` name the same conditions, [B, ...] each; both branches run in one evaluation of 2B. A scale
    of one is the conditional model. `scale` may be traced: a scalar or one a sample, [B]. Raises ValueError if the
    names differ.
    """
    if cond.keys() != null.keys():
        raise ValueError(f"cond and null must name the same conditions, got {sorted(cond)} and {sorted(null)}")
    both = {name: jnp.concatenate([null[name], cond[name]]) for name in cond}

    def denoise(x: Array, t: Time) -> Prediction:
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        prediction = predict(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)

        def mix(value: Array) -> Array:
            without, with_cond = jnp.split(value, 2)
            return without + match(scale, without) * (with_cond - without)

        return jax.tree.map(mix, prediction)

    return denoise
