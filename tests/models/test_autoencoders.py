"""Autoencoders: how they compute, their latents, and impossible configs. Beside diffusers: tests/interop."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.models import AutoencoderKL, AutoencoderTiny, Compute, Posterior, VQModel, functional
from jdiff.models.compute import REMAT
from tests.models.draws import drawn

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


POSTERIOR = Posterior(normal(3, 4, 4, 2), normal(3, 4, 4, 2, seed=1))
# One level of each is enough, and compiles soon.
SMALL = {
    "kl": AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
    "vq": VQModel(block_out_channels=(8,), norm_num_groups=4),
    "tiny": AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(6, 6),
        num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    ),
}


def gradient_under(name, compute):
    """The gradient of the squares of images in the parameters, and the images; with parameters, not yet compiled."""
    network = functional(dataclasses.replace(SMALL[name], compute=compute).module)
    params, x = drawn(network), normal(2, 8, 8, 3)

    def loss(params):
        reconstructed = network.apply(params, x)
        return jnp.square(reconstructed).mean(), reconstructed

    return jax.jit(jax.grad(loss, has_aux=True)), params


@cache
def plain(name):
    run, params = gradient_under(name, Compute())
    return run(params)


def apart(ours, others):
    """The greatest difference over the greatest value; some gradients, as of keys' biases, are nothing but rounding."""
    greatest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(others))
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), ours, others))) / greatest


OTHERWISE = [
    *[(name, Compute(remat=policy)) for name in ("kl", "tiny") for policy in REMAT],
    ("vq", Compute(remat="full")),
    ("kl", Compute(scan=False)),
]


@pytest.mark.parametrize("name, compute", OTHERWISE)
def test_rematerialization_changes_nothing(name, compute):
    run, params = gradient_under(name, compute)
    (gradient, image), (plain_gradient, plain_image) = run(params), plain(name)
    assert apart(gradient, plain_gradient) < 1e-5 and apart(image, plain_image) < 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_full_rematerialization_computes_again(name):
    def work(compute):
        run, params = gradient_under(name, compute)
        return run.lower(params).cost_analysis()["flops"]

    # The way forward is one third of it, and most of that is inside the blocks.
    assert 1.15 * work(Compute()) < work(Compute(remat="full")) < 1.4 * work(Compute())


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_is_close_and_gives_float32(name):
    run, params = gradient_under(name, Compute(dtype="bfloat16"))
    gradient, image = run(params)
    assert image.dtype == jnp.float32 and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
    exact = plain(name)[1]
    assert 1e-5 < float(jnp.linalg.norm(image - exact) / jnp.linalg.norm(exact)) < 0.03


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_what_overflows_in_float16_computes_in_float32(name, upcast):
    config = dataclasses.replace(SMALL[name], compute=Compute(dtype="float16"), force_upcast=upcast)
    network = functional(config.module)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert ("f16" in str(jax.make_jaxpr(network.apply)(params, jnp.zeros((2, 8, 8, 3))))) is not upcast


@pytest.mark.parametrize("name", SMALL)
def test_to_reconstruct_is_to_encode_and_to_decode(name):
    network = functional(SMALL[name].module)
    params, x = drawn(network), normal(2, 8, 8, 3)
    latents = network.apply(params, x, method="encode")
    latents = latents.mode if isinstance(latents, Posterior) else latents
    np.testing.assert_array_equal(network.apply(params, x), network.apply(params, latents, method="decode"))


def test_samples_have_the_moments_of_the_posterior():
    posterior, n = POSTERIOR, 20_000
    draws = jax.vmap(posterior.sample)(jax.random.split(jax.random.key(0), n))
    std = jnp.exp(posterior.log_variance / 2)
    # 96 numbers: five standard errors are passed by chance once in 20,000 runs.
    assert jnp.abs((draws.mean(0) - posterior.mean) / std).max() < 5 / np.sqrt(n)
    assert jnp.abs(draws.var(0) / std**2 - 1).max() < 5 * np.sqrt(2 / n)
    assert jnp.array_equal(posterior.mode, posterior.mean)


def test_the_draw_of_an_image_depends_on_its_key_alone():
    posterior, keys = POSTERIOR, jax.random.split(jax.random.key(1), 3)
    together = posterior.sample(keys)
    alone = jax.tree.map(lambda leaf: leaf[1:2], posterior).sample(keys[1:2])
    assert jnp.array_equal(together[1:2], alone)
    assert not jnp.allclose(together[0] - posterior.mean[0], together[1] - posterior.mean[1])


# Edges of images are halved twice.
LARGER = {
    "vq": VQModel(
        block_out_channels=(4, 4, 4), down_block_types=(DOWN,) * 3, up_block_types=(UP,) * 3, norm_num_groups=2
    ),
    "tiny": AutoencoderTiny(
        encoder_block_out_channels=(4,) * 3,
        num_encoder_blocks=(1,) * 3,
        decoder_block_out_channels=(4,) * 3,
        num_decoder_blocks=(1,) * 3,
    ),
}


@pytest.mark.parametrize("name", ["vq", "tiny"])
def test_sizes_that_cannot_be_halved_are_refused(name):
    network = functional(LARGER[name].module)
    params = jax.eval_shape(network.init, jax.random.key(0))
    for shape in ((1, 8, 6, 3), (1, 10, 8, 3)):
        with pytest.raises(ValueError, match=f"x: an image of {shape[1]}x{shape[2]} pixels; multiples of 4"):
            jax.eval_shape(lambda params, x: network.apply(params, x, method="encode"), params, jnp.zeros(shape))


def test_indices_and_latents_are_two_names_of_one_thing():
    config = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, vq_embed_dim=5)
    network = functional(config.module)
    params = drawn(network)
    indices = jnp.asarray(np.random.default_rng(0).integers(0, config.num_vq_embeddings, (2, 3, 4)))
    latents = network.apply(params, indices, method="lookup")
    again = network.apply(params, latents, method="quantize")
    assert latents.shape == (2, 3, 4, 5) and jnp.array_equal(again.indices, indices)
    np.testing.assert_allclose(again.latents, latents, atol=1e-6)
    np.testing.assert_allclose(again.loss, 0, atol=1e-12)
    assert jnp.isnan(network.apply(params, indices.at[0].set(config.num_vq_embeddings), method="lookup")[0]).all()


@pytest.mark.parametrize(
    "cls, fields, complaint",
    [
        (AutoencoderKL, {"down_block_types": (DOWN, DOWN)}, "down_block_types: .* 2 entries for 1"),
        (AutoencoderKL, {"up_block_types": (DOWN,)}, "up_block_types: .*DownEncoderBlock2D.* none of Up"),
        (AutoencoderKL, {"layers_per_block": 0}, "layers_per_block: 0"),
        (VQModel, {"block_out_channels": (48,)}, r"block_out_channels: \[48\] .*norm_num_groups=32"),
        (AutoencoderKL, {"latents_std": (1.0,)}, "latents_std: .* 1 entries for 4"),
        (AutoencoderKL, {"latents_mean": (0.0,) * 4, "shift_factor": 0.1}, "latents_mean: .* shift_factor=0.1"),
        (AutoencoderTiny, {"num_encoder_blocks": (1, 2)}, "num_encoder_blocks: .* 2 entries for 4"),
        (AutoencoderTiny, {"decoder_block_out_channels": (8, 8, 8, 4)}, "decoder_block_out_channels: .* same"),
    ],
)
def test_impossible_configs_are_refused(cls, fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        cls(**fields)
