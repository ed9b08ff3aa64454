"""Loss by noise level on held-out images, beside the same on training images: the gap is what was learnt by heart."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import rng
from jdiff.losses import Loss
from jdiff.models import Network
from jdiff.prediction import Parameterization, Prediction, predictor
from jdiff.processes import Process
from jdiff.typing import Array, Params


def loss_by_level(
    network: Network,
    params: Params,
    process: Process,
    parameterization: Parameterization,
    loss: Loss,
    images: np.ndarray,
    labels: np.ndarray | None,
    times: Array,
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """Mean loss [n] at each of `times` [n] over images [N, H, W, C], with noise fixed by level and row."""

    @jax.jit
    def batch_loss(x0, cond, index, weight, level, t):
        predict = predictor(partial(network.apply, params), process, parameterization)
        key = rng.numbered(rng.named(jax.random.key(0), "evaluate"), level)
        eps = rng.normal(rng.per_example(key, index), x0)
        values = loss(process, predict(process.perturb(x0, eps, t), t, cond), Prediction(x0, eps), t)
        return jnp.sum(weight * values)

    totals = np.zeros(len(times))
    for start in range(0, len(images), batch_size):
        rows = np.arange(start, start + batch_size)
        weight = (rows < len(images)).astype(np.float32)
        rows = np.minimum(rows, len(images) - 1)
        cond = {} if labels is None else {"label": labels[rows]}
        for level, t in enumerate(times):
            totals[level] += float(batch_loss(images[rows], cond, rows.astype(np.uint32), weight, level, t))
    return totals / len(images)
