"""The discriminator of patches: what a logit sees, its losses by known values, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff.models import (
    Compute,
    PatchDiscriminator,
    functional,
    hinge_discriminator,
    hinge_generator,
    non_saturating_discriminator,
    non_saturating_generator,
)
from jdiff.models.convolution import GroupNorm
from tests.models.draws import drawn

SMALL = {"in_channels": 1, "channels": 4, "norm_num_groups": 2}


@pytest.mark.parametrize("layers, edge", [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_square_of_the_published_size(layers, edge, monkeypatch):
    """With the statistics of the image held, which group normalization takes from all of it."""
    monkeypatch.setattr(GroupNorm, "__call__", lambda self, x: x * self.scale[...] + self.bias[...])
    config = PatchDiscriminator(**SMALL, layers=layers)
    network = functional(config.module)
    params, step = drawn(network), 2**layers
    x = jax.random.normal(jax.random.key(0), (1, 12 * step + 4, 14 * step + 2, 1))

    def seen(row, column):
        gradient = jax.jit(jax.grad(lambda x: network.apply(params, x)[0, row, column, 0]))(x)
        rows, columns = np.nonzero(np.asarray(gradient)[0, :, :, 0])
        return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1

    top, bottom, left, right = seen(5, 6)
    assert (bottom - top, right - left) == (edge, edge) and config.sees == edge
    assert seen(6, 7) == (top + step, bottom + step, left + step, right + step)


def test_logits_of_an_image_do_not_depend_on_other_images():
    network = functional(PatchDiscriminator(**SMALL, layers=1).module)
    params = drawn(network)
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    apply = jax.jit(network.apply)
    assert jnp.array_equal(apply(params, x)[0], apply(params, x.at[1].multiply(3.0))[0])


def test_it_has_as_many_parameters_as_that_of_the_paper():
    """pix2pix names it C64-C128-C256-C512, 4x4 each, with one last layer; scale and bias of a normalization are two."""
    network = functional(PatchDiscriminator().module)
    leaves = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
    assert sum(leaf.size for leaf in leaves) == kernels + 64 + 1 + 2 * (128 + 256 + 512)


def test_an_image_of_256_pixels_has_30_by_30_logits():
    network = functional(PatchDiscriminator().module)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.eval_shape(network.apply, params, jnp.zeros((2, 256, 128, 3))).shape == (2, 30, 14, 1)


def test_impossible_configs_and_images_are_refused():
    with pytest.raises(ValueError, match="layers: 0"):
        PatchDiscriminator(layers=0)
    with pytest.raises(ValueError, match=r"channels: twice 5 .*norm_num_groups=4"):
        PatchDiscriminator(channels=5, norm_num_groups=4)
    network = functional(PatchDiscriminator(**SMALL).module)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.eval_shape(network.apply, params, jnp.zeros((1, 24, 24, 1))).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="x: an image of 30x23 pixels; at least 24x24 wanted"):
        jax.eval_shape(network.apply, params, jnp.zeros((1, 30, 23, 1)))


def test_bfloat16_is_close_and_gives_float32():
    networks = [
        functional(PatchDiscriminator(**SMALL, compute=Compute(dtype=d)).module) for d in ("float32", "bfloat16")
    ]
    params, x = drawn(networks[0]), jax.random.normal(jax.random.key(0), (1, 40, 40, 1))
    exact, rounded = (jax.jit(network.apply)(params, x) for network in networks)
    assert rounded.dtype == jnp.float32
    assert 1e-5 < jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact) < 0.03


LOGITS = jnp.array([[[-3.0], [-0.5]], [[0.5], [3.0]]])  # [2 examples, 2 patches, 1]


def test_hinge_losses_and_their_gradients():
    np.testing.assert_allclose(hinge_discriminator(LOGITS, -LOGITS), 2 * np.array([(4 + 1.5) / 2, (0.5 + 0) / 2]))
    np.testing.assert_allclose(hinge_discriminator(LOGITS, LOGITS), [2.75 + 0.25, 0.25 + 2.75])
    np.testing.assert_allclose(hinge_generator(LOGITS), [1.75, -1.75])
    real, fake = jax.grad(lambda *logits: hinge_discriminator(*logits).sum(), (0, 1))(LOGITS, LOGITS)
    np.testing.assert_allclose(real.reshape(-1), [-0.5, -0.5, -0.5, 0])  # none beyond the margin
    np.testing.assert_allclose(fake.reshape(-1), [0, 0.5, 0.5, 0.5])


def test_non_saturating_losses_and_their_gradients():
    certain = jnp.array([[np.log(3.0)], [-np.log(3.0)]])  # that it is real with 3/4, with 1/4
    np.testing.assert_allclose(non_saturating_discriminator(certain, -certain), 2 * np.log([4 / 3, 4]), rtol=1e-6)
    np.testing.assert_allclose(non_saturating_generator(certain), np.log([4 / 3, 4]), rtol=1e-6)
    slope = jax.grad(lambda fake: non_saturating_generator(fake).sum())(certain)
    np.testing.assert_allclose(slope, [[-0.25], [-0.75]], rtol=1e-6)  # most where it is told apart
    far = jnp.array([[1e4], [-1e4]])
    np.testing.assert_allclose(non_saturating_generator(far), [0, 1e4])
    np.testing.assert_allclose(non_saturating_discriminator(far, far), [1e4, 1e4])


@pytest.mark.parametrize(
    "loss, best",
    [(non_saturating_discriminator, lambda p, q: np.log(p / q)), (hinge_discriminator, lambda p, q: np.sign(p - q))],
)
def test_the_best_discriminator_is_the_known_one(loss, best):
    """Over five things of known probabilities, real and generated."""
    p, q = np.array([0.1, 0.3, 0.2, 0.15, 0.25]), np.array([0.3, 0.1, 0.05, 0.35, 0.2])
    expected = lambda table: (p * loss(table, jnp.full(5, -2.0)) + q * loss(jnp.full(5, 2.0), table)).sum()
    slope = jax.jit(jax.grad(expected))
    table = jnp.zeros(5)
    for i in range(4000):
        table -= (2.0 if loss is non_saturating_discriminator else 4.0 / (1 + i)) * slope(table)
    np.testing.assert_allclose(table, best(p, q), atol=0.05)


def test_it_learns_to_tell_textures_apart():
    config = PatchDiscriminator(**SMALL, layers=1)
    network = functional(config.module)
    params = jax.jit(network.init)(jax.random.key(0))
    optimizer = optax.adam(2e-3)

    def batch(key):
        rough = jax.random.normal(key, (2, 16, 16, 16, 1))
        smooth = (rough + jnp.roll(rough, 1, 2) + jnp.roll(rough, 1, 3)) / np.sqrt(3)
        return rough[0], smooth[1]

    @jax.jit
    def step(params, state, key):
        real, fake = batch(key)
        loss = lambda p: hinge_discriminator(network.apply(p, real), network.apply(p, fake)).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(150):
        params, state = step(params, state, jax.random.key(i))
    real, fake = (jax.jit(network.apply)(params, x) for x in batch(jax.random.key(10_000)))
    assert (real > 0).mean() > 0.9 and (fake < 0).mean() > 0.9
