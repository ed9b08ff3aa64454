"""Dynamic loss scaling, for activations in float16 (1710.03740, 3.2).

Slopes of activations below 6e-8 are zero in float16. So the loss is multiplied by a power of two before it is
differentiated, and the gradient divided by it, in float32. Where the gradient then is not finite, the scale was too
large: the update is skipped and the scale halved. After `_PATIENCE` updates without that it is doubled.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from jdiff.typing import Array

FIRST = 2.0**15
_GREATEST = 2.0**24
_PATIENCE = 2000


class Scale(NamedTuple):
    """What the loss is multiplied by."""

    value: Array  # float32 [], a power of two from 1 on
    made: Array  # int32 [], updates made since it has changed


class Scaled(NamedTuple):
    """The state of an optimizer, with the scale of the loss that its gradients are of."""

    scale: Scale
    inner: optax.OptState


def scaled(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, whose state begins with the first scale, and keeps the one that it has."""

    def init(params: optax.Params) -> Scaled:
        return Scaled(Scale(jnp.float32(FIRST), jnp.int32(0)), optimizer.init(params))

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        updates, inner = optimizer.update(updates, state.inner, params)
        return updates, Scaled(state.scale, inner)

    return optax.GradientTransformation(init, update)


def overflown(scale: Scale, loss: Array, norm: Array) -> Array:
    """Whether the scale is to blame for this norm of the gradient (bool []): not for a loss that is not finite itself,
    nor where it cannot be smaller."""
    return jnp.isfinite(loss) & ~jnp.isfinite(norm) & (scale.value > 1)


def adjusted(scale: Scale, overflow: Array | bool, good: Array) -> Scale:
    """After an update that was made (`good`), or was not, by overflow or otherwise."""
    made = jnp.where(overflow, 0, scale.made + good.astype(jnp.int32))
    grown = made >= _PATIENCE
    value = jnp.where(grown, jnp.minimum(2 * scale.value, _GREATEST), jnp.where(overflow, scale.value / 2, scale.value))
    return Scale(value, jnp.where(grown, 0, made))
