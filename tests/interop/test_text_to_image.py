"""Whole pipelines beside diffusers': tiny random folders of Stable Diffusion 1, XL and 3, ten steps with guidance from
the same latents."""

import numpy as np
import pytest

from jdiff import TextToImage
from tests.interop.peers import diffusers, drawn, images, nchw, nhwc, torch, transformers
from tests.text.folders import clip_folder, t5_folder

CLOSE, STEPS, LENGTH = 1e-3, 10, 16
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = {
    "ddim": ("DDIM", SD | {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": ("EulerDiscrete", SD | {"timestep_spacing": "leading"}),
    "dpmpp_2m": ("DPMSolverMultistep", SD),
}
PROMPTS = ["a red cube, on a table", "two birds"]
NEGATIVE = ["blurry", ""]


def text_encoder(tokenizer, project, seed):
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=6,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    name = "CLIPTextModelWithProjection" if project else "CLIPTextModel"
    return drawn(getattr(transformers, name)(config), seed)


def autoencoder(**config):
    return drawn(
        diffusers.AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            sample_size=16,
            **config,
        ),
        scale=0.02,
    )


def unet(**config):
    return drawn(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            attention_head_dim=2,
            **config,
        ),
        scale=0.02,
    )


def scheduler(name):
    kind, config = SCHEDULERS[name]
    return getattr(diffusers, f"{kind}Scheduler")(**config)


def clip_tokenizer(folder, **options):
    clip_folder(folder, limit=LENGTH, **options)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def stable_diffusion(folder, method):
    tokenizer = clip_tokenizer(folder / "vocabulary")
    return diffusers.StableDiffusionPipeline(
        unet=unet(
            cross_attention_dim=12,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        vae=autoencoder(),
        text_encoder=text_encoder(tokenizer, project=False, seed=1),
        tokenizer=tokenizer,
        scheduler=scheduler(method),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(folder, method):
    one, two = clip_tokenizer(folder / "one"), clip_tokenizer(folder / "two", pad="!")
    return diffusers.StableDiffusionXLPipeline(
        unet=unet(
            cross_attention_dim=24,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 + 6 * 4,
        ),
        vae=autoencoder(),
        text_encoder=text_encoder(one, project=False, seed=1),
        text_encoder_2=text_encoder(two, project=True, seed=2),
        tokenizer=one,
        tokenizer_2=two,
        scheduler=scheduler(method),
    )


def stable_diffusion_3(folder, with_t5):
    one, two = clip_tokenizer(folder / "one"), clip_tokenizer(folder / "two", pad="!")
    three = encoder = None
    if with_t5:
        t5_folder(folder / "three")
        three = transformers.T5TokenizerFast.from_pretrained(folder / "three")
        config = transformers.T5Config(
            vocab_size=len(three),
            d_model=32,
            d_kv=4,
            d_ff=16,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
        encoder = drawn(transformers.T5EncoderModel(config), 3)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=12,
        pos_embed_max_size=8,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=drawn(transformer, scale=0.02),
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder(one, project=True, seed=1),
        text_encoder_2=text_encoder(two, project=True, seed=2),
        text_encoder_3=encoder,
        tokenizer=one,
        tokenizer_2=two,
        tokenizer_3=three,
        # Without T5, the shift depends on the picture's size.
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=not with_t5),
    )


PIPELINES = {
    **{f"sd, {name}": (stable_diffusion, name) for name in SCHEDULERS},
    **{f"sdxl, {name}": (stable_diffusion_xl, name) for name in SCHEDULERS},
    "sd3": (stable_diffusion_3, True),
    "sd3 without t5": (stable_diffusion_3, False),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_latents_end_where_those_of_diffusers_end(name, tmp_path):
    make, option = PIPELINES[name]
    pipe = make(tmp_path, option)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipe")
    start = images(2, 8, 8, 4)
    arguments = {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 5.0}
    arguments |= {"latents": nchw(start), "height": 16, "width": 16}
    theirs = nhwc(pipe(**arguments, output_type="latent").images)

    ours = TextToImage.from_pretrained(tmp_path / "pipe")
    given = {"seeds": [0, 1], "negative": NEGATIVE, "steps": STEPS, "guidance": 5.0}
    latents = ours(PROMPTS, **given, latents=start, decode=False)
    assert np.abs(latents - theirs).max() < CLOSE * max(1, np.abs(theirs).max())
    decoded = nhwc(torch.tensor(np.stack(pipe(**arguments, output_type="pt").images)))
    assert np.abs((ours(PROMPTS, **given, latents=start) + 1) / 2 - decoded).max() < CLOSE
