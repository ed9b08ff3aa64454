"""The loss on held-out data, by the averaged parameters, while a run goes on.

Examples, times and noise are the same at every step, so that the figures of a run tell its steps apart and nothing
else: the first batches of the held-out side, not mirrored, with all their conditions; noise from (seed, example).
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from jdiff import rng
from jdiff.losses import diffusion_loss
from jdiff.prediction import predictor
from jdiff.train.step import given
from jdiff.train.trainer import Trainer
from jdiff.typing import Array, Params

_BATCHES = 8
"""At most: what is held out is read once, and stays on the devices."""


def held_out_loss(trainer: Trainer) -> Callable[[Params], float]:
    """loss(params): the run's loss, averaged over batches of the held-out side of its data. Raises ValueError where
    nothing is held out."""
    experiment, network = trainer.experiment, trainer.network
    batches = trainer.held_out(_BATCHES)

    def batch_loss(params: Params, batch: dict[str, Array]) -> Array:
        keys = rng.per_example(rng.named(jax.random.key(experiment.seed), "held_out"), batch["index"])
        x0, cond = given(keys, batch)
        predict = predictor(partial(network.apply, params), experiment.process, experiment.parameterization)
        losses, _ = diffusion_loss(keys, predict, experiment.process, experiment.loss, experiment.times, x0, cond)
        return losses.mean()

    compiled = jax.jit(trainer.on_mesh(batch_loss))
    return lambda params: float(np.mean([float(compiled(params, batch)) for batch in batches]))
