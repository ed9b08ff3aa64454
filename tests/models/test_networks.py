"""What every network of `jdiff.models` promises, driven through one table."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.models import DiT, UNet, build

CONFIGS = {
    "unet": UNet(channels=8, multipliers=(1, 2), blocks=(1, 1), attention=(1,), heads=2, patch=2),
    "unet-local": UNet(channels=8, multipliers=(1, 1, 2), blocks=(2, 1, 1), attention=(), heads=1, patch=1),
    "dit": DiT(patch=4, width=16, depth=2, heads=2, mlp_ratio=2),
}
SIZE, CHANNELS, CLASSES, BATCH = 16, 3, 5, 4
LABELS = jnp.array([0, 1, 2, CLASSES])
every_config = pytest.mark.parametrize("name", CONFIGS)


def inputs(seed: int = 0):
    key_x, key_label = jax.random.split(jax.random.key(seed))
    shape = (BATCH, SIZE, SIZE, CHANNELS)
    return jax.random.normal(key_x, shape), jax.random.uniform(key_label, (BATCH,), minval=-1.6, maxval=1.1)


def network_of(name: str, num_classes: int = CLASSES):
    return build(CONFIGS[name], size=SIZE, channels=CHANNELS, num_classes=num_classes)


def perturbed(network, scale: float = 0.1):
    """Parameters away from initialization, where the zero layers would hide everything behind them."""
    leaves, structure = jax.tree.flatten(network.init(jax.random.key(1)))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return jax.tree.unflatten(structure, moved)


@every_config
def test_parameters_are_nested_dicts_of_float32(name):
    def walk(node):
        if isinstance(node, dict):
            assert type(node) is dict and all(type(key) is str for key in node)
            return [leaf for value in node.values() for leaf in walk(value)]
        return [node]

    leaves = walk(network_of(name).init(jax.random.key(0)))
    assert leaves and all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves)


@every_config
def test_output_starts_at_zero_and_can_leave_it(name):
    network, (x, noise_label) = network_of(name), inputs()
    params = network.init(jax.random.key(0))
    assert not network.apply(params, x, noise_label, {"label": LABELS}).any()
    gradient = jax.grad(lambda p: jnp.square(network.apply(p, x, noise_label, {"label": LABELS}) - x).mean())(params)
    assert jnp.abs(gradient["leave"]["kernel"]).max() > 1e-4


@every_config
def test_output_is_float32_like_the_input(name):
    network, (x, noise_label) = network_of(name), inputs()
    raw = network.apply(perturbed(network), x, noise_label, {"label": LABELS})
    assert raw.shape == x.shape and raw.dtype == jnp.float32
    assert jnp.isfinite(raw).all()


@every_config
def test_repeated_calls_compile_once(name):
    network = network_of(name)
    apply = jax.jit(network.apply)
    for seed in range(3):
        x, noise_label = inputs(seed)
        apply(network.init(jax.random.key(seed)), x, noise_label, {"label": LABELS})
    assert apply._cache_size() == 1


@every_config
def test_vmap_over_parameters_is_each_network_alone(name):
    network, (x, noise_label) = network_of(name), inputs()
    cond = {"label": LABELS}
    pair = [perturbed(network, 0.1), perturbed(network, 0.2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
    together = jax.jit(jax.vmap(network.apply, (0, None, None, None)))(stacked, x, noise_label, cond)
    for i, params in enumerate(pair):
        np.testing.assert_allclose(together[i], network.apply(params, x, noise_label, cond), rtol=1e-3, atol=1e-4)


@every_config
def test_each_sample_is_independent_of_the_others(name):
    network, (x, noise_label) = network_of(name), inputs()
    apply = jax.jit(partial(network.apply, perturbed(network)))
    raw = apply(x, noise_label, {"label": LABELS})
    mixed = apply(
        x.at[1:].set(7.0 - x[1:]), noise_label.at[1:].multiply(-0.5), {"label": LABELS.at[1:].set(4)}
    )
    np.testing.assert_allclose(mixed[0], raw[0], rtol=1e-5, atol=1e-5)
    assert jnp.abs(mixed[1:] - raw[1:]).max() > 1e-2


@every_config
def test_noise_label_and_class_each_change_the_output(name):
    network, (x, noise_label) = network_of(name), inputs()
    apply = jax.jit(partial(network.apply, perturbed(network)))
    raw = apply(x, noise_label, {"label": LABELS})
    noisier = apply(x, noise_label + 0.1, {"label": LABELS})
    relabelled = apply(x, noise_label, {"label": (LABELS + 1) % (CLASSES + 1)})
    for other in (noisier, relabelled):
        assert jnp.abs(other - raw).max(axis=(1, 2, 3)).min() > 1e-3


@every_config
def test_one_output_pixel_sees_the_far_corner(name):
    network, (x, noise_label) = network_of(name, num_classes=0), inputs()
    params = perturbed(network)
    gradient = jax.grad(lambda x: network.apply(params, x, noise_label, {})[0, 0, 0, 0])(x)
    assert jnp.abs(gradient[0, -2:, -2:]).max() > 1e-7
    assert not gradient[1:].any()


@every_config
def test_conditions_must_match_the_network(name):
    x, noise_label = inputs()
    conditional, unconditional = network_of(name), network_of(name, num_classes=0)
    with pytest.raises(ValueError, match="label"):
        conditional.apply(conditional.init(jax.random.key(0)), x, noise_label, {})
    with pytest.raises(ValueError, match="label"):
        unconditional.apply(unconditional.init(jax.random.key(0)), x, noise_label, {"label": LABELS})
    with pytest.raises(ValueError, match="text"):
        conditional.apply(conditional.init(jax.random.key(0)), x, noise_label, {"label": LABELS, "text": x})
    with pytest.raises(ValueError, match="integers"):
        conditional.apply(conditional.init(jax.random.key(0)), x, noise_label, {"label": LABELS * 1.0})


@pytest.mark.parametrize("name, size, divisor", [("unet", 18, 4), ("unet-local", 6, 4), ("dit", 10, 4), ("dit", 0, 4)])
def test_a_size_that_does_not_divide_is_refused(name, size, divisor):
    with pytest.raises(ValueError, match=f"size: {size} .*{divisor}"):
        build(CONFIGS[name], size=size, channels=CHANNELS, num_classes=0)
