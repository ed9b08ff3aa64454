"""What training changes: one pytree, passed in and returned, saved and restored whole."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdiff import rng
from jdiff.models import Network
from jdiff.train.faults import Skipped, none_skipped
from jdiff.train.scaling import Scale, Scaled
from jdiff.typing import Array, Params


class TrainState(NamedTuple):
    """The state after `step` updates."""

    step: Array  # int32 []
    params: Params
    ema: Params
    opt_state: optax.OptState
    key: Array  # uint32 [2]: data of the key that all noise of the run comes from
    skipped: Skipped
    profiles: dict[str, Params]  # power-function averages by their relative width

    @property
    def scale(self) -> Scale | None:
        """Of the loss, where activations are float16."""
        return self.opt_state.scale if isinstance(self.opt_state, Scaled) else None


def initial(
    network: Network, optimizer: optax.GradientTransformation, seed: int, profiles: tuple[float, ...] = ()
) -> TrainState:
    """The state before the first update: a pure function of the seed. `profiles`: widths of averages that are kept."""
    key = jax.random.key(seed)
    params = network.init(rng.named(key, "parameters"))
    average = jax.tree.map(jnp.copy, params)  # a buffer of its own, or donation would give one buffer away twice
    opt_state = optimizer.init(params)
    kept = {f"{width:g}": jax.tree.map(jnp.copy, params) for width in profiles}
    return TrainState(jnp.int32(0), params, average, opt_state, jax.random.key_data(key), none_skipped(), kept)
