"""What every network of `jdiff.models` promises, driven through one table."""

from functools import cache, partial, reduce
from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.models import DiT, JiT, LinearAttention, Network, SongUNet, UNet, build
from tests.compilations import compilations
from tests.models.draws import drawn

CONFIGS = {
    "unet": UNet(channels=8, multipliers=(1, 2), blocks=(1, 1), attention=(1,), heads=2, patch=2),
    "unet-local": UNet(channels=8, multipliers=(1, 1, 2), blocks=(2, 1, 1), attention=(), heads=1, patch=1),
    "dit": DiT(patch_size=4, num_layers=2, num_attention_heads=2, attention_head_dim=8),
    "dit-linear-rope": DiT(
        patch_size=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        attention=LinearAttention(),
        positions="rope",
    ),
    "jit": JiT(
        patch_size=4,
        bottleneck=12,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        context_tokens=3,
        context_start=1,
    ),
    "song": SongUNet(
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(8,),
        channel_mult_emb=2,
        encoder_type="residual",
        decoder_type="skip",
    ),
}
LAST = {
    "unet": ("leave",),
    "unet-local": ("leave",),
    "dit": ("proj_out_2",),
    "dit-linear-rope": ("proj_out_2",),
    "jit": ("proj_out",),
    "song": ("dec", "16x16_aux_conv"),
}
SIZE, CHANNELS, CLASSES, BATCH = 16, 3, 5, 4
LABELS = jnp.array([0, 1, 2, CLASSES])
every_config = pytest.mark.parametrize("name", CONFIGS)


def inputs(seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, SIZE, SIZE, CHANNELS))
    return jnp.asarray(x, jnp.float32), jnp.asarray(rng.uniform(-1.6, 1.1, BATCH), jnp.float32)


@cache
def network_of(name: str, num_classes: int = CLASSES) -> Network:
    """One network for all tests, jitted, so that each program is compiled once."""
    network = build(CONFIGS[name], size=SIZE, channels=CHANNELS, num_classes=num_classes)
    return Network(jax.jit(network.init), jax.jit(network.apply))


@every_config
def test_parameters_are_nested_dicts_of_float32(name):
    def walk(node):
        if isinstance(node, dict):
            assert type(node) is dict and all(type(key) is str for key in node)
            return [leaf for value in node.values() for leaf in walk(value)]
        return [node]

    leaves = walk(jax.eval_shape(network_of(name).init, jax.random.key(0)))
    assert leaves and all(type(leaf) is jax.ShapeDtypeStruct and leaf.dtype == jnp.float32 for leaf in leaves)


@every_config
def test_output_starts_at_zero_and_can_leave_it(name):
    network, (x, noise_label) = network_of(name), inputs()
    params = network.init(jax.random.key(0))
    assert not network.apply(params, x, noise_label, {"label": LABELS}).any()
    loss = lambda p: jnp.square(network.apply(p, x, noise_label, {"label": LABELS}) - x).mean()
    gradient = jax.jit(jax.grad(loss))(params)
    assert jnp.abs(reduce(getitem, LAST[name], gradient)["kernel"]).max() > 1e-4


@every_config
def test_output_is_float32_like_the_input(name):
    network, (x, noise_label) = network_of(name), inputs()
    raw = network.apply(drawn(network), x, noise_label, {"label": LABELS})
    assert raw.shape == x.shape and raw.dtype == jnp.float32
    assert jnp.isfinite(raw).all()


@every_config
def test_output_channels_are_those_asked_for(name):
    wide = build(CONFIGS[name], size=SIZE, channels=CHANNELS, num_classes=CLASSES, out_channels=7)
    x, noise_label = inputs()
    params = jax.eval_shape(wide.init, jax.random.key(0))
    raw = jax.eval_shape(wide.apply, params, x, noise_label, {"label": LABELS})
    assert raw.shape == (*x.shape[:-1], 7) and raw.dtype == jnp.float32


@every_config
def test_repeated_calls_compile_once(name):
    network = network_of(name)
    with compilations(network.apply.__name__) as made:
        for seed in range(3):
            x, noise_label = inputs(seed)
            network.apply(drawn(network, seed=seed), x, noise_label, {"label": LABELS})
    assert len(made) <= 1


@every_config
def test_vmap_over_parameters_is_each_network_alone(name):
    network, (x, noise_label) = network_of(name), inputs()
    cond = {"label": LABELS}
    pair = [drawn(network, seed=0), drawn(network, seed=1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
    together = jax.jit(jax.vmap(network.apply, (0, None, None, None)))(stacked, x, noise_label, cond)
    for i, params in enumerate(pair):
        np.testing.assert_allclose(together[i], network.apply(params, x, noise_label, cond), rtol=1e-3, atol=1e-4)


@every_config
def test_each_sample_is_independent_of_the_others(name):
    network, (x, noise_label) = network_of(name), inputs()
    apply = partial(network.apply, drawn(network))
    raw = apply(x, noise_label, {"label": LABELS})
    mixed = apply(x.at[1:].set(7.0 - x[1:]), noise_label.at[1:].multiply(-0.5), {"label": LABELS.at[1:].set(4)})
    np.testing.assert_allclose(mixed[0], raw[0], rtol=1e-5, atol=1e-5)
    assert jnp.abs(mixed[1:] - raw[1:]).max() > 1e-2


@every_config
def test_noise_label_and_class_each_change_the_output(name):
    network, (x, noise_label) = network_of(name), inputs()
    apply = partial(network.apply, drawn(network))
    raw = apply(x, noise_label, {"label": LABELS})
    noisier = apply(x, noise_label + 0.1, {"label": LABELS})
    relabelled = apply(x, noise_label, {"label": (LABELS + 1) % (CLASSES + 1)})
    for other in (noisier, relabelled):
        assert jnp.abs(other - raw).max(axis=(1, 2, 3)).min() > 1e-3


@every_config
def test_one_output_pixel_sees_the_far_corner(name):
    network, (x, noise_label) = network_of(name, num_classes=0), inputs()
    params = drawn(network)
    gradient = jax.jit(jax.grad(lambda x: network.apply(params, x, noise_label, {})[0, 0, 0, 0]))(x)
    assert jnp.abs(gradient[0, -2:, -2:]).max() > 1e-7
    assert not gradient[1:].any()


@every_config
def test_conditions_must_match_the_network(name):
    x, noise_label = inputs()
    conditional, unconditional = network_of(name), network_of(name, num_classes=0)
    params, bare = drawn(conditional), drawn(unconditional)
    with pytest.raises(ValueError, match="label"):
        conditional.apply(params, x, noise_label, {})
    with pytest.raises(ValueError, match="label"):
        unconditional.apply(bare, x, noise_label, {"label": LABELS})
    with pytest.raises(ValueError, match="text"):
        conditional.apply(params, x, noise_label, {"label": LABELS, "text": x})
    with pytest.raises(ValueError, match="integers"):
        conditional.apply(params, x, noise_label, {"label": LABELS * 1.0})


@pytest.mark.parametrize(
    "name, size, divisor",
    [("unet", 18, 4), ("unet-local", 6, 4), ("dit", 10, 4), ("dit", 0, 4), ("jit", 10, 4), ("song", 9, 2)],
)
def test_a_size_that_does_not_divide_is_refused(name, size, divisor):
    with pytest.raises(ValueError, match=f"size: {size} .*{divisor}"):
        build(CONFIGS[name], size=size, channels=CHANNELS, num_classes=0)
