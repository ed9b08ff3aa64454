"""The U-Net: its pyramid, its reach and its impossible configs."""

import jax
import jax.numpy as jnp
import pytest

from jdiff.models import UNet, build
from tests.models.draws import drawn

GOOD = {"channels": 8, "multipliers": (1, 2), "blocks": (1, 2), "attention": (1,), "heads": 2, "patch": 1}


def reach(config: UNet, size: int) -> jax.Array:
    """[size, size]: which input pixels one output pixel in the middle depends on, parameters drawn at random."""
    network = build(config, size=size, channels=1, num_classes=0)
    params = drawn(network)
    x = jax.random.normal(jax.random.key(1), (1, size, size, 1))
    middle = size // 2
    output = lambda x: network.apply(params, x, jnp.zeros(1), {})[0, middle, middle, 0]
    return jnp.abs(jax.jit(jax.grad(output))(x))[0, :, :, 0] > 0


def test_attention_makes_the_whole_image_visible_where_convolutions_alone_do_not():
    flat = {"channels": 4, "multipliers": (1,), "blocks": (1,), "heads": 1, "patch": 1}
    local = reach(UNet(**flat, attention=()), 32)
    assert 0 < local.sum() <= 9 * 9
    assert reach(UNet(**flat, attention=(0,)), 32).all()


def test_a_level_below_widens_the_reach():
    one = reach(UNet(channels=4, multipliers=(1,), blocks=(2,), attention=(), heads=1, patch=1), 64)
    two = reach(UNet(channels=4, multipliers=(1, 1), blocks=(1, 1), attention=(), heads=1, patch=1), 64)
    assert two.sum() > 1.5 * one.sum()


def test_skips_carry_the_image_past_the_middle():
    """With everything that arrives from below cut off at the merge, the output must still follow the input."""
    config = UNet(**GOOD)
    network = build(config, size=8, channels=1, num_classes=0)
    params = drawn(network)
    merge = params["merge"]["0"]["0"]
    merge["kernel"] = merge["kernel"].at[: config.width(1)].set(0.0)
    apply = jax.jit(lambda x: network.apply(params, x, jnp.zeros(1), {}))
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
    assert jnp.abs(apply(-x) - apply(x)).max() > 1e-3


@pytest.mark.parametrize(
    "change, named",
    [({"blocks": (1,)}, "blocks"), ({"attention": (2,)}, "attention"), ({"heads": 3}, "heads")],
)
def test_impossible_configs_are_refused_by_field(change, named):
    with pytest.raises(ValueError, match=f"^{named}:"):
        UNet(**(GOOD | change))
