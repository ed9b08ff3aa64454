"""Autoencoders beside diffusers' AutoencoderKL, VQModel and AutoencoderTiny."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jdiff.interop import from_pretrained
from jdiff.interop.pretrained import read_config
from jdiff.models import AutoencoderKL, AutoencoderTiny, Posterior, VQModel, functional
from jdiff.models.autoencoder_vq import BETA, Codebook
from tests.interop.peers import agree, diffusers, drawn, images, nchw, nhwc, torch
from tests.models.draws import drawn as drawn_params

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def levels(*widths, **fields):
    count = len(widths)
    return {"block_out_channels": widths, "down_block_types": (DOWN,) * count, "up_block_types": (UP,) * count} | fields


ATTENTIVE = {"down_block_types": (DOWN, "AttnDownEncoderBlock2D"), "up_block_types": ("AttnUpDecoderBlock2D", UP)}
CONFIGS = {
    "kl": ("AutoencoderKL", levels(8, 16, norm_num_groups=4)),
    "kl_bare": (
        "AutoencoderKL",
        levels(4, 8, layers_per_block=2, norm_num_groups=2, latent_channels=16, shift_factor=0.06)
        | {"use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "kl_attentive": (
        "AutoencoderKL",
        levels(6, 6, norm_num_groups=3, in_channels=1, out_channels=2, mid_block_add_attention=False) | ATTENTIVE,
    ),
    "vq": ("VQModel", levels(8, 16, norm_num_groups=4, num_vq_embeddings=20)),
    "vq_wide": (
        "VQModel",
        levels(4, 8, 8, norm_num_groups=2, latent_channels=2, vq_embed_dim=5)
        | {"mid_block_add_attention": False, "lookup_from_codebook": True},
    ),
    "vq_attentive": ("VQModel", levels(6, 12, norm_num_groups=3, in_channels=1, out_channels=1) | ATTENTIVE),
    "tiny": (
        "AutoencoderTiny",
        {"num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1)}
        | {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (6, 6)},
    ),
    "tiny_16": (
        "AutoencoderTiny",
        {"num_encoder_blocks": (2, 1, 1), "num_decoder_blocks": (1, 1, 3), "latent_channels": 16, "out_channels": 1}
        | {"encoder_block_out_channels": (4,) * 3, "decoder_block_out_channels": (4,) * 3},
    ),
    "tiny_threefold": (
        "AutoencoderTiny",
        {"num_encoder_blocks": (0, 2), "num_decoder_blocks": (0, 2), "upsampling_scaling_factor": 3, "in_channels": 4}
        | {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)},
    ),
}


def made(name):
    published, fields = CONFIGS[name]
    return drawn(getattr(diffusers, published)(**fields))


def encoded(model, x):
    if isinstance(model, diffusers.AutoencoderKL):
        posterior = model.encode(x).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], 1)
    return model.encode(x).latents


def our_encoded(network, params, x):
    latents = network.apply(params, x, method="encode")
    return jnp.concatenate(latents, axis=-1) if isinstance(latents, Posterior) else latents


@pytest.mark.parametrize("name", CONFIGS)
def test_the_encoder_computes_what_that_of_diffusers_computes(name, tmp_path):
    model = made(name)
    agree(model, encoded, our_encoded, images(2, 16, 8, model.config.in_channels), tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_decoder_computes_what_that_of_diffusers_computes(name, tmp_path):
    model = made(name)
    channels = model.config.get("vq_embed_dim") or model.config.latent_channels
    theirs = lambda model, x: model.decode(x).sample
    ours = lambda network, params, x: network.apply(params, x, method="decode")
    # Wide enough that the bound of the tiny one matters, and latents differ in the entry of the codebook.
    agree(model, theirs, ours, 2 * images(2, 6, 4, channels), tmp_path)


# The config.json files of published weights, from memory, but for what diffusers says of itself.
SD_15 = levels(128, 256, 512, 512, layers_per_block=2, latent_channels=4, norm_num_groups=32, sample_size=512)
SD_15 |= {"act_fn": "silu", "in_channels": 3, "out_channels": 3, "_diffusers_version": "0.6.0"}
SDXL = SD_15 | {"force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025, "_name_or_path": "../sdxl-vae/"}
NO_STATISTICS = {"latents_mean": None, "latents_std": None}
SD_3 = SDXL | {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609} | NO_STATISTICS
SD_3 |= {"use_quant_conv": False, "use_post_quant_conv": False}
FLUX = SD_3 | {"scaling_factor": 0.3611, "shift_factor": 0.1159, "mid_block_add_attention": True}
PLAYGROUND = SDXL | {"latents_mean": [-1.6574, 1.886, -1.383, 2.5155], "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}
LDM_VQ = levels(128, 256, 512, act_fn="silu", layers_per_block=2, norm_num_groups=32, sample_size=256)
LDM_VQ |= {"in_channels": 3, "out_channels": 3, "latent_channels": 3, "num_vq_embeddings": 8192, "vq_embed_dim": None}
AMUSED = LDM_VQ | levels(128, 256, 256, 512, 768, latent_channels=64, vq_embed_dim=64, norm_type="group")
AMUSED |= {"mid_block_add_attention": False, "lookup_from_codebook": True, "force_upcast": True}
FOUR = [64, 64, 64, 64]
TAESD = {"act_fn": "relu", "block_out_channels": FOUR, "encoder_block_out_channels": FOUR, "in_channels": 3}
TAESD |= {"decoder_block_out_channels": FOUR, "force_upcast": False, "latent_channels": 4, "latent_magnitude": 3}
TAESD |= {"latent_shift": 0.5, "num_encoder_blocks": [1, 3, 3, 3], "num_decoder_blocks": [3, 3, 3, 1]}
TAESD |= {"out_channels": 3, "scaling_factor": 1.0, "upsampling_scaling_factor": 2}
TAESD_3 = TAESD | {"latent_channels": 16, "shift_factor": 0.0, "upsample_fn": "nearest"}
PUBLISHED = {
    "sd_15": (AutoencoderKL, SD_15, 83_653_863),
    "sdxl": (AutoencoderKL, SDXL, 83_653_863),
    "sd_3": (AutoencoderKL, SD_3, None),
    "flux": (AutoencoderKL, FLUX, None),
    "playground": (AutoencoderKL, PLAYGROUND, None),
    "ldm_vq": (VQModel, LDM_VQ, None),
    "amused": (VQModel, AMUSED, None),
    "taesd": (AutoencoderTiny, TAESD, None),
    "taesd_3": (AutoencoderTiny, TAESD_3, None),
}


def as_file(folder, published, fields):
    path = folder / "config.json"
    path.write_text(json.dumps({"_class_name": published, "_diffusers_version": "0.20.0.dev0"} | fields))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_have_as_many_parameters(name, tmp_path):
    cls, fields, known = PUBLISHED[name]
    config = read_config(as_file(tmp_path, cls.published, fields))
    assert type(config) is cls
    with torch.device("meta"):
        theirs = getattr(diffusers, cls.published).from_config(json.loads((tmp_path / "config.json").read_text()))
    for field in {field.name for field in dataclasses.fields(cls)} - {"compute"}:
        expected, given = theirs.config[field], getattr(config, field)
        assert given == (tuple(expected) if isinstance(expected, list) else expected), field
    ours = jax.eval_shape(functional(config.module).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(ours))
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    assert known is None or count == known


@pytest.mark.parametrize(
    "name, fields, complaint",
    [
        ("sd_15", {"scaling_factor": 0}, "scaling_factor: 0 is not above 0"),
        ("sd_15", {"act_fn": "mish"}, "unsupported act_fn='mish'"),
        ("amused", {"norm_type": "spatial"}, "unsupported norm_type='spatial'"),
        ("taesd", {"upsample_fn": "bilinear"}, "unsupported upsample_fn='bilinear'"),
    ],
)
def test_other_fields_and_values_are_refused(name, fields, complaint, tmp_path):
    cls, published, _ = PUBLISHED[name]
    with pytest.raises(ValueError, match=complaint):
        read_config(as_file(tmp_path, cls.published, published | fields))


def test_attention_has_its_old_names_in_old_files(tmp_path):
    model = made("kl")
    model.save_pretrained(tmp_path / "new")
    new = from_pretrained(tmp_path / "new")
    path, old = tmp_path / "new" / "diffusion_pytorch_model.safetensors", {}
    parts = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, tensor in load_file(path).items():
        for part, before in parts.items():
            name = name.replace(f"attentions.0.{part}.", f"attentions.0.{before}.")
        old[name] = tensor
    assert sum("proj_attn" in name for name in old) == 4
    save_file(old, path, {"format": "pt"})
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "new")
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), model.parameters(), strict=True))
    assert jax.tree.all(jax.tree.map(np.array_equal, from_pretrained(tmp_path / "new").params, new.params))
    save_file({name: tensor for name, tensor in old.items() if "decoder" not in name or "query" not in name}, path)
    with pytest.raises(ValueError, match=r"missing decoder.mid_block.attentions.0.to_q.weight"):
        from_pretrained(tmp_path / "new")


def our_config(name):
    published, fields = CONFIGS[name]
    return {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel, "AutoencoderTiny": AutoencoderTiny}[published](**fields)


def test_log_variances_are_clipped_as_in_diffusers():
    model = made("kl")
    with torch.no_grad():
        model.quant_conv.weight[4:] *= 2000
    config = our_config("kl")
    network = functional(config.module)
    params = drawn_params(network)
    kernel = params["quant_conv"]["kernel"]
    params["quant_conv"]["kernel"] = kernel.at[..., 4:].mul(2000)
    posterior = network.apply(params, jnp.asarray(images(2, 8, 8, 3)), method="encode")
    assert float(posterior.log_variance.min()) == -30 and float(posterior.log_variance.max()) == 20
    theirs = model.encode(nchw(images(2, 8, 8, 3))).latent_dist.logvar.detach()
    assert float(theirs.min()) == -30 and float(theirs.max()) == 20


def test_the_divergence_is_that_of_normal_distributions():
    posterior = Posterior(jnp.asarray(images(3, 4, 4, 2)), jnp.asarray(images(3, 4, 4, 2, seed=1)))
    std = torch.tensor(np.exp(np.asarray(posterior.log_variance) / 2))
    normal = torch.distributions.Normal(torch.tensor(np.asarray(posterior.mean)), std)
    exact = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    np.testing.assert_allclose(posterior.kl(), exact.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["sd_15", "sd_3", "playground", "ldm_vq", "taesd"])
def test_standardized_latents_have_no_mean_and_a_variance_of_one(name, tmp_path):
    cls, fields, _ = PUBLISHED[name]
    config = read_config(as_file(tmp_path, cls.published, fields))
    noise = jax.random.normal(jax.random.key(0), (64, 8, 8, config.latent_channels))
    mean = jnp.asarray(fields.get("latents_mean") or fields.get("shift_factor") or 0.0)
    std = jnp.asarray(fields.get("latents_std") or 1.0) / config.scaling_factor
    np.testing.assert_allclose(config.standardized(mean + std * noise), noise, atol=1e-5)
    np.testing.assert_allclose(config.restored(noise), mean + std * noise, atol=1e-5)


def quantizer(seed=0):
    """A codebook of diffusers, one of ours with the same entries, and latents."""
    quantizer = diffusers.models.autoencoders.vae.VectorQuantizer(12, 3, beta=BETA, legacy=False)
    theirs = drawn(quantizer, seed=seed, scale=1.0)
    params = {"embedding": {"embedding": jnp.asarray(theirs.embedding.weight.detach().numpy())}}
    return theirs, functional(lambda rngs: Codebook(12, 3, rngs=rngs)), params, images(4, 5, 6, 3)


def test_latents_become_the_nearest_of_the_codebook():
    theirs, network, params, z = quantizer()
    ours, (latents, _, (_, _, indices)) = network.apply(params, jnp.asarray(z)), theirs(nchw(z))
    np.testing.assert_array_equal(ours.indices.reshape(-1), indices)
    np.testing.assert_allclose(ours.latents, nhwc(latents), atol=1e-6)
    assert len(np.unique(ours.indices)) > 6


def test_the_loss_of_the_codebook_and_its_gradients_are_those_of_the_paper():
    """In diffusers the form of the paper goes by legacy=False. Its VQModel has the same value with another gradient."""
    theirs, network, params, z = quantizer()
    z_theirs = nchw(z).requires_grad_()
    loss = theirs(z_theirs)[1]
    loss.backward()
    ours = lambda params, z: network.apply(params, z).loss.mean()
    value, (codes, latents) = jax.value_and_grad(ours, (0, 1))(params, jnp.asarray(z))
    np.testing.assert_allclose(value, loss.item(), rtol=1e-6)
    np.testing.assert_allclose(codes["embedding"]["embedding"], theirs.embedding.weight.grad, atol=1e-6)
    np.testing.assert_allclose(latents, nhwc(z_theirs.grad), atol=1e-6)
    one = network.apply(params, jnp.asarray(z)).loss
    alone = [network.apply(params, jnp.asarray(z[i : i + 1])).loss[0] for i in range(4)]
    np.testing.assert_allclose(one, np.array(alone), rtol=1e-6)


def test_the_gradient_passes_the_codebook_as_if_it_were_not_there():
    _, network, params, z = quantizer()
    weights = jnp.asarray(images(*z.shape, seed=3))
    through = lambda params, z: (network.apply(params, z).latents * weights).sum()
    codes, latents = jax.grad(through, (0, 1))(params, jnp.asarray(z))
    np.testing.assert_allclose(latents, weights, rtol=1e-6)
    assert not codes["embedding"]["embedding"].any()


def test_tiny_latents_as_pixels_are_those_of_diffusers():
    theirs, ours = made("tiny"), our_config("tiny")
    latents = 3 * images(2, 4, 4, 4)
    pixels = ours.scale_latents(jnp.asarray(latents))
    np.testing.assert_allclose(pixels, theirs.scale_latents(torch.tensor(latents)), atol=1e-6)
    assert float(pixels.min()) == 0 and float(pixels.max()) == 1
    inside = np.abs(latents) < 3
    np.testing.assert_allclose(ours.unscale_latents(pixels)[inside], latents[inside], atol=1e-5)
