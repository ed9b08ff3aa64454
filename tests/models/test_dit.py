"""The DiT: tokens know their position, and its impossible configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.models import DiT, JiT, MMDiT, UNet, build
from tests.models.draws import drawn

CONFIG = DiT(patch_size=2, num_layers=2, num_attention_heads=2, attention_head_dim=8)


def test_permuting_the_patches_does_not_just_permute_the_output():
    """Without positions a transformer is equivariant to permutations of its tokens; here one must not be."""
    network = build(CONFIG, size=8, channels=1, num_classes=0)
    params = drawn(network)
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
    apply = jax.jit(lambda x: network.apply(params, x, jnp.zeros(1), {}))
    for axis in (1, 2):
        rolled = jnp.roll(apply(x), 2, axis)
        assert jnp.abs(apply(jnp.roll(x, 2, axis)) - rolled).max() > 0.02 * jnp.abs(rolled).max()


def test_a_patch_is_put_back_where_it_was():
    """With the blocks at their zero start and a linear entry and exit, a change in one patch stays in that patch."""
    network = build(CONFIG, size=8, channels=1, num_classes=0)
    params = jax.jit(network.init)(jax.random.key(0))
    params["proj_out_2"]["kernel"] = jax.random.normal(jax.random.key(1), params["proj_out_2"]["kernel"].shape)
    x = jax.random.normal(jax.random.key(2), (1, 8, 8, 1))
    apply = jax.jit(lambda x: network.apply(params, x, jnp.zeros(1), {}))
    moved = apply(x.at[0, 2:4, 6:8].add(1.0))
    changed = np.abs(moved - apply(x))[0, :, :, 0] > 1e-6
    assert changed[2:4, 6:8].any()
    changed[2:4, 6:8] = False
    assert not changed.any()


def test_an_impossible_width_is_refused():
    with pytest.raises(ValueError, match=r"^width: num_attention_heads=3 times attention_head_dim=6"):
        DiT(num_attention_heads=3, attention_head_dim=6)


@pytest.mark.parametrize("shape", [(7, 8), (8, 7), (1, 8)])
def test_pictures_that_patches_do_not_cover_are_refused(shape):
    cond = {"text": jnp.zeros((1, 3, 8)), "pooled": jnp.zeros((1, 8))}
    mmdit = MMDiT(
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        caption_projection_dim=16,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    for config, given in (
        (CONFIG, {}),
        (mmdit, cond),
        (JiT(patch_size=2, num_layers=2, context_start=1), {}),
        (UNet(), {}),
    ):
        network = build(config, size=16, channels=1, num_classes=0)
        with pytest.raises(ValueError, match=f"x: {shape[0]} x {shape[1]} pixels, both must be multiples of"):
            jax.eval_shape(
                lambda x, network=network, given=given: network.apply(
                    network.init(jax.random.key(0)), x, jnp.zeros(1), given
                ),
                jnp.zeros((1, *shape, 1)),
            )
