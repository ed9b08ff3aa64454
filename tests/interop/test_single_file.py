"""Original files of Stable Diffusion beside what diffusers makes of them: the same configs, the same parameters to the
bit, the same outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jdiff import TextToImage
from jdiff.interop import from_pretrained, from_single_file
from tests.interop.originals import CLIP_2, CLIP_G, CLIP_L, NETWORK, SIZES, XL, drawn, open_clip, tensors_of, under
from tests.interop.peers import OUTPUT, apart, diffusers, images, nchw, nhwc, torch, transformers
from tests.text.folders import clip_folder, clip_vocabulary

theirs = pytest.importorskip("diffusers.loaders.single_file_utils")
CROSS, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"


def their_unet(**config):
    return diffusers.UNet2DConditionModel(**config)


def their_vae(pixels, scale, **config):
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
        sample_size=pixels,
        scaling_factor=scale,
        **config,
    )


def their_clip(width, layers, *, act="quick_gelu", project=False, **config):
    options = {"num_attention_heads": width // 64, "max_position_embeddings": 16, "vocab_size": 99, "eos_token_id": 2}
    options |= {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "hidden_act": act}
    name = "CLIPTextModelWithProjection" if project else "CLIPTextModel"
    return getattr(transformers, name)(transformers.CLIPTextConfig(**options | {"projection_dim": width} | config))


def their_t5():
    options = {"d_model": 32, "d_kv": 64, "d_ff": 48, "num_layers": 2, "num_heads": 2, "vocab_size": 60}
    return transformers.T5EncoderModel(transformers.T5Config(**options, feed_forward_proj="gated-gelu"))


def their_mmdit():
    return diffusers.SD3Transformer2DModel(
        sample_size=128,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=64,
        joint_attention_dim=32,
        caption_projection_dim=128,
        pooled_projection_dim=192,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0, 1),
    )


def clip_state(checkpoint, model, prefix=None):
    return theirs.convert_ldm_clip_checkpoint(checkpoint, prefix)


def clip_l_state(checkpoint, model):
    return clip_state(checkpoint, model, CLIP_L) | {"text_projection.weight": torch.eye(64)}


def vae_state(checkpoint, model):
    # What training left there, their own loader drops afterwards.
    kept = {name: tensor for name, tensor in checkpoint.items() if ".loss." not in name}
    return theirs.convert_ldm_vae_checkpoint(kept, dict(model.config))


def unet_state(checkpoint, model):
    return theirs.convert_ldm_unet_checkpoint(checkpoint, dict(model.config))


def open_clip_state(prefix):
    return lambda checkpoint, model: theirs.convert_open_clip_checkpoint(model, checkpoint, prefix)


def mmdit_state(checkpoint, model):
    network = {name: tensor for name, tensor in checkpoint.items() if name.startswith(NETWORK)}
    return theirs.convert_sd3_transformer_checkpoint_to_diffusers(network)


# Of each network: their class with the config that it must have, and their conversion.
PARTS = {
    "1": {
        "unet": (
            lambda: their_unet(
                sample_size=64,
                block_out_channels=(32, 64),
                down_block_types=(CROSS, "DownBlock2D"),
                up_block_types=("UpBlock2D", CROSS_UP),
                attention_head_dim=8,
                cross_attention_dim=128,
            ),
            unet_state,
        ),
        "vae": (lambda: their_vae(512, 0.18215), vae_state),
        "text_encoder": (lambda: their_clip(128, 2), clip_state),
    },
    "2": {
        "unet": (
            lambda: their_unet(
                sample_size=96,
                block_out_channels=(64, 128),
                down_block_types=(CROSS,) * 2,
                up_block_types=(CROSS_UP,) * 2,
                layers_per_block=1,
                attention_head_dim=(1, 2),
                cross_attention_dim=128,
                use_linear_projection=True,
            ),
            unet_state,
        ),
        "vae": (lambda: their_vae(768, 0.18215), vae_state),
        "text_encoder": (lambda: their_clip(128, 23, act="gelu"), open_clip_state(CLIP_2)),
    },
    "XL": {
        "unet": (
            lambda: their_unet(
                sample_size=128,
                block_out_channels=(64, 128, 128),
                down_block_types=("DownBlock2D", CROSS, CROSS),
                up_block_types=(CROSS_UP, CROSS_UP, "UpBlock2D"),
                layers_per_block=1,
                attention_head_dim=(1, 2, 2),
                transformer_layers_per_block=(1, 1, 2),
                cross_attention_dim=192,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=SIZES,
            ),
            unet_state,
        ),
        "vae": (lambda: their_vae(1024, 0.13025), vae_state),
        "text_encoder": (lambda: their_clip(64, 2), clip_state),
        "text_encoder_2": (
            lambda: their_clip(128, 3, act="gelu", project=True, intermediate_size=96),
            open_clip_state(XL[1]),
        ),
    },
    "3": {
        "transformer": (their_mmdit, mmdit_state),
        "vae": (
            lambda: their_vae(1024, 1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
            vae_state,
        ),
        "text_encoder": (lambda: their_clip(64, 2, project=True), clip_l_state),
        "text_encoder_2": (
            lambda: their_clip(128, 2, act="gelu", project=True),
            lambda checkpoint, model: clip_state(checkpoint, model, CLIP_G),
        ),
        "text_encoder_3": (
            their_t5,
            lambda checkpoint, model: theirs.convert_sd3_t5_checkpoint_to_diffusers(checkpoint),
        ),
    },
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """From a family to (tensors, path)."""
    folder = tmp_path_factory.mktemp("originals")

    @functools.cache
    def made(family):
        tensors, path = tensors_of(family), folder / f"{family}.safetensors"
        if family == "3":
            tensors[f"{NETWORK}pos_embed"] = their_mmdit().pos_embed.pos_embed.numpy()
        save_file(tensors, path)
        return tensors, path

    return made


@pytest.fixture(scope="module")
def networks(file):
    """From a family to what its file holds."""
    return functools.cache(lambda family: from_single_file(file(family)[1]))


def converted(family, name, tensors):
    """Their network, with what their code makes of the tensors."""
    make, convert = PARTS[family][name]
    model = make().eval()
    state = convert({key: torch.tensor(tensor) for key, tensor in tensors.items()}, model)
    if "text_model" not in dict(model.named_children()):
        state = {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
    state = {key: tensor for key, tensor in state.items() if not key.endswith("position_ids")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"} and not unexpected
    return model


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, parts in PARTS.items() for name in parts])
def test_networks_are_those_that_diffusers_makes_of_the_file(file, networks, family, name, tmp_path):
    assert set(networks(family)) == set(PARTS[family])
    model = converted(family, name, file(family)[0])
    model.save_pretrained(tmp_path)
    expected, ours = from_pretrained(tmp_path), networks(family)[name]
    assert ours.config == expected.config
    assert jax.tree.structure(ours.params) == jax.tree.structure(expected.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours.params, expected.params))
    if (family, name) in (("2", "vae"), ("XL", "vae")):
        return  # the same network as that of family 1
    for value, wanted in outputs(model, ours):
        assert apart(value, wanted) < OUTPUT


def test_a_file_draws_what_diffusers_draws(tmp_path):
    """Of Stable Diffusion 2, whose U-Net predicts v: from the same latents, with guidance."""
    folder = clip_folder(tmp_path / "tokenizer", limit=16)
    words = under(CLIP_2, open_clip(width=128, layers=24, vocabulary=len(clip_vocabulary()[0])))
    tensors = tensors_of("2") | drawn(words)
    save_file(tensors, tmp_path / "2.safetensors")
    ours = TextToImage.from_single_file(tmp_path / "2.safetensors", tokenizer=folder)
    ours.save_pretrained(tmp_path / "folder")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    pipe.set_progress_bar_config(disable=True)
    pipe.register_modules(unet=converted("2", "unet", tensors), vae=converted("2", "vae", tensors))
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    start = images(1, 8, 8, 4)
    told = pipe("a cat", num_inference_steps=4, latents=nchw(start), height=16, width=16, output_type="latent").images
    drawn_here = ours(["a cat"], seeds=[0], steps=4, latents=start, height=16, width=16, decode=False)
    assert apart(drawn_here, nhwc(told)) < 1e-3


def outputs(model, ours):
    """(ours, theirs) for each output."""
    config = ours.config
    apply = jax.jit(ours.network.apply, static_argnames="method")
    kind = type(model).__name__
    with torch.no_grad():
        if kind == "AutoencoderKL":
            x, z = images(1, 16, 16, 3), images(1, 8, 8, 4)
            return [
                (apply(ours.params, x, method="encode").mean, nhwc(model.encode(nchw(x)).latent_dist.mean)),
                (apply(ours.params, z, method="decode"), nhwc(model.decode(nchw(z)).sample)),
            ]
        if kind in ("CLIPTextModel", "CLIPTextModelWithProjection"):
            ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 16))
            out, told = model(torch.tensor(ids)), apply(ours.params, jnp.asarray(ids))
            pairs = [(told.last_hidden_state, out.last_hidden_state.numpy())]
            return pairs + ([(told.text_embeds, out.text_embeds.numpy())] if told.text_embeds is not None else [])
        if kind == "T5EncoderModel":
            ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 16))
            told = apply(ours.params, jnp.asarray(ids), None)
            return [(told, model(torch.tensor(ids)).last_hidden_state.numpy())]
        x, t = images(2, 8, 8, 4), np.array([3.0, 700.0], np.float32)
        if kind == "SD3Transformer2DModel":
            cond = {"text": images(2, 5, config.joint_attention_dim), "pooled": images(2, config.pooled_projection_dim)}
            given = {"encoder_hidden_states": cond["text"], "pooled_projections": cond["pooled"]}
        else:
            cond = {"text": images(2, 5, config.cross_attention_dim)}
            given = {"encoder_hidden_states": cond["text"]}
        given = {key: torch.tensor(value) for key, value in given.items()}
        if getattr(config, "addition_embed_type", None):
            cond |= {"pooled": images(2, 128), "time_ids": np.array([[16, 16, 0, 0, 16, 16]] * 2, np.float32)}
            added = {"text_embeds": torch.tensor(cond["pooled"]), "time_ids": torch.tensor(cond["time_ids"])}
            given["added_cond_kwargs"] = added
        out = model(nchw(x), timestep=torch.tensor(t), **given).sample
        return [(apply(ours.params, x, t, cond), nhwc(out))]
