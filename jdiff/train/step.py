"""One update: noise from (seed, step, example), loss, gradient, optimizer, average. A pure function."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jdiff import rng
from jdiff.data import floats
from jdiff.experiment import Experiment
from jdiff.losses import diffusion_loss, low_discrepancy
from jdiff.models import Network, Regularization
from jdiff.prediction import predictor
from jdiff.train import ema, faults, scaling
from jdiff.train.state import TrainState
from jdiff.typing import Array, Cond, Key, Params

Metrics = dict[str, Array]
Graded = tuple[Array, Params]
"""Loss and gradient."""
Made = tuple[TrainState, Metrics]


def given(keys: Key, rows: dict[str, Array]) -> tuple[Array, Cond]:
    """x0 [B, H, W, C] and the conditions of rows of a batch; latents are drawn, row b's from keys[b]."""
    cond = {name: value for name, value in rows.items() if name not in ("image", "index", "spread")}
    image = rows["image"]
    if image.dtype == jnp.uint8:
        image = floats(image)
    if "spread" in rows:
        draw = jax.vmap(lambda key, like: jax.random.normal(key, like.shape, like.dtype))
        image = image + rows["spread"] * draw(rng.named(keys, "latents"), image)
    return image, cond


def dropped(keys: Key, cond: Cond, rate: float, num_classes: int) -> Cond:
    """The conditions with a share `rate` of the labels replaced by the null class, row b by keys[b] alone."""
    if "label" not in cond:
        return cond
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(rng.named(keys, "label_dropout"))
    return cond | {"label": jnp.where(drop, num_classes, cond["label"])}


def left_out(keys: Key, experiment: Experiment) -> dict[str, Regularization]:
    """What the network is told of dropout and stochastic depth in one update: nothing where there is none."""
    if not experiment.dropout and not experiment.stochastic_depth:
        return {}
    keys = rng.named(keys, "regularization")
    shares = {"dropout": experiment.dropout, "depth": experiment.stochastic_depth}
    return {"regularization": Regularization(keys=keys, **shares)}


def mean_over_parts(of_part: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """The mean of what `of_part` gives for each of `parts` parts of `rows`, arrays [B, ...], one after the other.

    Part p holds rows p, p + parts, ...: what lies on one device stays there."""
    if parts == 1:
        return of_part(rows)
    cut = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), rows)
    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], cut))
    )
    add = lambda total, part: (jax.tree.map(jnp.add, total, of_part(part)), None)
    total, _ = jax.lax.scan(add, zero, cut)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def make_parts(
    experiment: Experiment, network: Network, optimizer: optax.GradientTransformation, num_classes: int
) -> tuple[Callable[[TrainState, dict[str, Array], Array | int], Graded], Callable[[TrainState, Graded], Made]]:
    """The two halves of an update: graded(state, rows, first) -> (loss, gradient) of rows of the batch, the first of
    which has that place in it, and applied(state, (loss, gradient)) -> (state, metrics)."""

    def graded(state: TrainState, rows: dict[str, Array], first: Array | int) -> Graded:
        scale = state.scale
        key = rng.numbered(rng.named(jax.random.wrap_key_data(state.key), "train"), state.step)
        keys = rng.per_example(key, rows["index"])
        image, cond = given(keys, rows)
        cond = dropped(keys, cond, experiment.label_dropout, num_classes)
        place = first + jnp.arange(len(rows["index"]))
        u = low_discrepancy(rng.named(key, "time"), place) if experiment.stratified_times else None

        def mean_loss(params: Params, part: tuple[Key, Array, Cond, Array | None]) -> Array:
            keys, image, cond, u = part
            raw = partial(network.apply, params, **left_out(keys, experiment))
            predict = predictor(raw, experiment.process, experiment.parameterization)
            losses, _ = diffusion_loss(
                keys, predict, experiment.process, experiment.loss, experiment.times, image, cond, u
            )
            return losses.mean() if scale is None else losses.mean() * scale.value

        of_part = partial(jax.value_and_grad(mean_loss), state.params)
        found = mean_over_parts(of_part, (keys, image, cond, u), experiment.accumulate)
        return found if scale is None else jax.tree.map(lambda leaf: leaf / scale.value, found)

    def applied(state: TrainState, found: Graded) -> Made:
        loss, gradient = found
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params: Params = optax.apply_updates(state.params, updates)  # pyright: ignore[reportAssignmentType]
        average = ema.update(state.ema, params, state.step, experiment.ema_decay, experiment.swa)
        profiles = {
            name: ema.update_profile(kept, params, state.step, float(name)) for name, kept in state.profiles.items()
        }
        norm = optax.tree.norm(gradient)
        overflow = False if state.scale is None else scaling.overflown(state.scale, loss, norm)
        good, skipped = faults.judge(experiment.faults, state.skipped, loss, norm, overflow)
        keep = partial(jax.tree.map, partial(jnp.where, good))
        params, average = keep((params, average), (state.params, state.ema))
        profiles = keep(profiles, state.profiles)
        opt_state = keep(opt_state, state.opt_state)
        if state.scale is not None:
            opt_state = opt_state._replace(scale=scaling.adjusted(state.scale, overflow, good))
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": experiment.optimizer.schedule(experiment.steps)(state.step + 1),
            "skipped": skipped.total,
            "skipped_in_a_row": skipped.in_a_row,
        } | ({} if state.scale is None else {"loss_scale": state.scale.value})
        return TrainState(state.step + 1, params, average, opt_state, state.key, skipped, profiles), metrics

    return graded, applied


def make_step(
    experiment: Experiment,
    network: Network,
    optimizer: optax.GradientTransformation,
    num_classes: int,
    *,
    axis: str | None = None,
) -> Callable[[TrainState, dict[str, Array]], Made]:
    """step(state, batch) -> (state, metrics) for a batch of image [B, H, W, C], float32 or bytes for `floats`, index
    uint32 [B], label int32 [B] where there are classes, and what else the network takes. With latents, `image` is their
    mean and `spread`, of the same shape, their standard deviation: each update draws them anew. Metrics are scalars of
    this update, also of one that is skipped.

    Under `pmap`, `axis` is its name, and the batch is a device's own part."""
    graded, applied = make_parts(experiment, network, optimizer, num_classes)

    def step(state: TrainState, batch: dict[str, Array]) -> Made:
        if axis is None:
            return applied(state, graded(state, batch, 0))
        found = graded(state, batch, jax.lax.axis_index(axis) * len(batch["index"]))
        return applied(state, jax.lax.pmean(found, axis))

    return step
