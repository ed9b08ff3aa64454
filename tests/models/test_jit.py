"""JiT: it learns pictures of classes, its class tokens say something, and its impossible configs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff.models import JiT, build
from tests.models.draws import drawn

CONFIG = JiT(
    patch_size=4,
    bottleneck=8,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    context_tokens=2,
    context_start=1,
)
CLASSES, SIZE = 3, 8


def test_it_learns_to_denoise():
    """Three pictures, one a class: after 120 updates it draws the right one from noise alone."""
    network = build(CONFIG, size=SIZE, channels=1, num_classes=CLASSES)
    pictures = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (CLASSES, SIZE, SIZE, 1)), jnp.float32)
    optimizer = optax.adam(5e-3)

    def loss(params, key):
        """Of x0, at x = (1 - t) x0 + t eps."""
        keys = jax.random.split(key, 3)
        label = jax.random.randint(keys[0], (16,), 0, CLASSES)
        t = jax.random.uniform(keys[1], (16, 1, 1, 1))
        x0 = pictures[label]
        x = (1 - t) * x0 + t * jax.random.normal(keys[2], x0.shape)
        return jnp.square(network.apply(params, x, t[:, 0, 0, 0], {"label": label}) - x0).mean()

    @jax.jit
    def update(carry, key):
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params, key)
        step, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, step), state), value

    params = jax.jit(network.init)(jax.random.key(0))
    carry, values = (params, optimizer.init(params)), []
    for i in range(120):
        carry, value = update(carry, jax.random.key(i))
        values.append(float(value))
    assert np.mean(values[-20:]) < 0.1 * np.mean(values[:5])
    noise = jax.random.normal(jax.random.key(1), (CLASSES, SIZE, SIZE, 1))
    drawn_from_noise = network.apply(carry[0], noise, jnp.ones(CLASSES), {"label": jnp.arange(CLASSES)})
    errors = jnp.square(drawn_from_noise[:, None] - pictures).mean(axis=(2, 3, 4))
    assert (errors.argmin(axis=1) == jnp.arange(CLASSES)).all() and jnp.diag(errors).max() < 0.1


def test_the_class_comes_by_tokens_too():
    """Where nothing is modulated, the timestep changes nothing any more, but the label does."""
    network = build(CONFIG, size=SIZE, channels=1, num_classes=CLASSES)
    params = drawn(network)
    for stack in ("first_blocks", "last_blocks"):
        kernel = params[stack]["each"]["modulation"]["linear"]["kernel"]
        params[stack]["each"]["modulation"]["linear"]["kernel"] = jnp.zeros_like(kernel)
    kernel = params["modulation_out"]["linear"]["kernel"]
    params["modulation_out"]["linear"]["kernel"] = jnp.zeros_like(kernel)
    x = jax.random.normal(jax.random.key(0), (1, SIZE, SIZE, 1))
    apply = jax.jit(lambda params, t, label: network.apply(params, x, jnp.full(1, t), {"label": jnp.array([label])}))
    np.testing.assert_array_equal(apply(params, 0.1, 0), apply(params, 0.9, 0))
    assert jnp.abs(apply(params, 0.1, 0) - apply(params, 0.1, 1)).max() > 1e-3


def test_it_knows_where_a_patch_is():
    network = build(CONFIG, size=SIZE, channels=1, num_classes=0)
    params = drawn(network)
    x = jax.random.normal(jax.random.key(0), (1, SIZE, SIZE, 1))
    apply = jax.jit(lambda x: network.apply(params, x, jnp.zeros(1), {}))
    for axis in (1, 2):
        rolled = jnp.roll(apply(x), 4, axis)
        assert jnp.abs(apply(jnp.roll(x, 4, axis)) - rolled).max() > 1e-3 * jnp.abs(rolled).max()


@pytest.mark.parametrize(
    "sizes, millions",
    [
        ({}, 131),
        ({"num_layers": 24, "num_attention_heads": 16, "context_start": 8}, 459),
        (
            {
                "num_layers": 32,
                "num_attention_heads": 16,
                "attention_head_dim": 80,
                "bottleneck": 256,
                "context_start": 10,
            },
            953,
        ),
    ],
    ids=["B", "L", "H"],
)
def test_published_sizes_have_the_published_number_of_parameters(sizes, millions):
    network = build(JiT(**sizes), size=256, channels=3, num_classes=1000)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert round(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6) == millions


@pytest.mark.parametrize("change", [{"attention_head_dim": 6}, {"context_start": 0}, {"context_start": 2}], ids=str)
def test_impossible_configs_are_refused(change):
    ((field, value),) = change.items()
    with pytest.raises(ValueError, match=f"{field}: {value} is not"):
        dataclasses.replace(CONFIG, **change)
