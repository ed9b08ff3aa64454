"""Tiny folders of text-to-image pipelines with random weights, written by our own writers."""

import json

from jdiff.interop import save_pretrained
from jdiff.models import AutoencoderKL, CLIPText, UNet2DCondition, functional
from tests.models.draws import drawn
from tests.text.folders import clip_folder, clip_vocabulary

LENGTH = 16
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
NETWORKS = {
    "unet": UNet2DCondition(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "vae": AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
    ),
    "text_encoder": CLIPText(
        vocab_size=len(clip_vocabulary()[0]),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        eos_token_id=len(clip_vocabulary()[0]) - 1,
    ),
}


def stable_diffusion(folder):
    """A folder of Stable Diffusion 1 that draws 16 x 16 pixels."""
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    for name, config in NETWORKS.items():
        save_pretrained(folder / name, config, drawn(functional(config.module), scale=0.5))
        index[name] = ["transformers" if name == "text_encoder" else "diffusers", config.published]
    clip_folder(folder / "tokenizer", limit=LENGTH)
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
