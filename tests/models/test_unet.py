"""The U-Net: its pyramid, its reach and its impossible configs."""

import jax
import jax.numpy as jnp
import pytest

from jdiff.models import UNet, build

GOOD = dict(channels=8, multipliers=(1, 2), blocks=(1, 2), attention=(1,), heads=2, patch=1)


def reach(config: UNet, size: int) -> jax.Array:
    """[size, size]: which input pixels one output pixel in the middle depends on, parameters drawn at random."""
    network = build(config, size=size, channels=1, num_classes=0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        network.init(jax.random.key(0)),
    )
    x = jax.random.normal(jax.random.key(1), (1, size, size, 1))
    middle = size // 2
    output = lambda x: network.apply(params, x, jnp.zeros(1), {})[0, middle, middle, 0]  # noqa: E731
    return jnp.abs(jax.grad(output)(x))[0, :, :, 0] > 0


def test_attention_makes_the_whole_image_visible_where_convolutions_alone_do_not():
    flat = dict(channels=4, multipliers=(1,), blocks=(1,), heads=1, patch=1)
    local = reach(UNet(**flat, attention=()), 32)
    assert 0 < local.sum() <= 9 * 9
    assert reach(UNet(**flat, attention=(0,)), 32).all()


def test_a_level_below_widens_the_reach():
    one = reach(UNet(channels=4, multipliers=(1,), blocks=(2,), attention=(), heads=1, patch=1), 64)
    two = reach(UNet(channels=4, multipliers=(1, 1), blocks=(1, 1), attention=(), heads=1, patch=1), 64)
    assert two.sum() > 1.5 * one.sum()


def test_skips_carry_detail_that_the_middle_never_sees():
    """The middle sees means over 2x2; a pattern that vanishes in every such mean must still change the output."""
    config = UNet(**GOOD)
    network = build(config, size=8, channels=1, num_classes=0)
    params = jax.tree.map(lambda leaf: leaf + 0.1, network.init(jax.random.key(0)))
    cut = jax.tree.map(jnp.zeros_like, params["middle"])
    base = params | {"middle": cut}
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
    checkers = (-1.0) ** (jnp.arange(8)[:, None] + jnp.arange(8)[None])
    moved = network.apply(base, x + checkers[None, :, :, None], jnp.zeros(1), {})
    assert jnp.abs(moved - network.apply(base, x, jnp.zeros(1), {})).max() > 1e-3


@pytest.mark.parametrize(
    "change, named",
    [({"blocks": (1,)}, "blocks"), ({"attention": (2,)}, "attention"), ({"heads": 3}, "heads")],
)
def test_impossible_configs_are_refused_by_field(change, named):
    with pytest.raises(ValueError, match=f"^{named}:"):
        UNet(**(GOOD | change))
