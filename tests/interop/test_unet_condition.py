"""The text-conditional U-Net beside diffusers' UNet2DConditionModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.pipelines.text_to_image import scale_of_guidance
from tests.interop.peers import agree, diffusers, drawn, images, torch

SMALL = {"sample_size": 8, "norm_num_groups": 4, "layers_per_block": 1}
CONFIGS = {
    "sd1": {
        **SMALL,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
    },
    "sd2": {
        **SMALL,
        "in_channels": 9,
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": 6,
        "attention_head_dim": (1, 2, 4),
        "use_linear_projection": True,
        "num_class_embeds": 5,
        "resnet_time_scale_shift": "scale_shift",
        "freq_shift": 1,
        "norm_eps": 1e-4,
    },
    "sdxl": {
        **SMALL,
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 10,
        "attention_head_dim": (2, 4, 2),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 30,
    },
}
SD1 = CONFIGS["sd1"]
LABELLED = {"projection_class_embeddings_input_dim": 6}
CONFIGS |= {
    "upscaler": {
        **SD1,
        "in_channels": 7,
        "only_cross_attention": (True, False),
        "num_class_embeds": 5,
        "center_input_sample": True,
        "mid_block_scale_factor": 1.5,
    },
    # Those of Kolors besides, and a value for each level.
    "lcm": {
        **SD1,
        "time_cond_proj_dim": 6,
        "encoder_hid_dim": 5,
        "conv_in_kernel": 5,
        "conv_out_kernel": 1,
        "act_fn": "swish",
        "sample_size": (8, 12),
        "layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "upcast_attention": True,
    },
    "geowizard": {**SD1, **LABELLED, "class_embed_type": "projection", "only_cross_attention": True},
    "audioldm": {
        **SD1,
        **LABELLED,
        "class_embed_type": "simple_projection",
        "class_embeddings_concat": True,
        "cross_attention_dim": (8, 16),
    },
    "timestep": {**SD1, "class_embed_type": "timestep"},
    "identity": {**SD1, "class_embed_type": "identity"},
}
TIMESTEP = np.array([999.0, 1.0], np.float32)


def conditions(config):
    """Those that a config asks for, as numpy."""
    width = config.get("encoder_hid_dim", config["cross_attention_dim"])
    alone = width == config["block_out_channels"]
    width = width[0] if isinstance(width, tuple) else width
    cond = {} if alone else {"text": images(2, 5, width, seed=2)}
    labels = {"timestep": np.array([7.0, 950.0], np.float32), "identity": images(2, 32, seed=4)}
    labels |= dict.fromkeys(("projection", "simple_projection"), images(2, 6, seed=4))
    if "class_embed_type" in config:
        cond["label"] = labels[config["class_embed_type"]]
    elif "num_class_embeds" in config:
        cond["label"] = np.array([4, 0])
    if "time_cond_proj_dim" in config:
        cond["timestep_cond"] = images(2, config["time_cond_proj_dim"], seed=5)
    if "addition_embed_type" in config:
        cond["pooled"] = images(2, 6, seed=3)
        cond["time_ids"] = np.array([[1024, 768, 0, 16, 1024, 1024], [64, 64, 3, 5, 32, 32]], np.float32)
    return cond


@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_diffusers_computes(name, tmp_path):
    cond = conditions(CONFIGS[name])
    model = drawn(diffusers.UNet2DConditionModel(**CONFIGS[name]))

    def theirs(model, x):
        added = {"text_embeds": "pooled", "time_ids": "time_ids"} if "pooled" in cond else {}
        added = {name: torch.tensor(cond[key]) for name, key in added.items()}
        label = torch.tensor(cond["label"]) if "label" in cond else None
        given = {"class_labels": label, "added_cond_kwargs": added}
        if "timestep_cond" in cond:
            given["timestep_cond"] = torch.tensor(cond["timestep_cond"])
        text = torch.tensor(cond["text"]) if "text" in cond else None
        return model(x, torch.tensor(TIMESTEP), text, **given).sample

    def ours(network, params, x):
        return network.apply(params, x, jnp.asarray(TIMESTEP), jax.tree.map(jnp.asarray, cond))

    agree(model, theirs, ours, images(2, 8, 12, model.config.in_channels), tmp_path)


def test_what_a_distilled_network_is_told_of_guidance_is_what_diffusers_tells_it():
    for scale, width in ((7.5, 6), (1.0, 256), (3.0, 5)):
        kind = diffusers.LatentConsistencyModelPipeline
        theirs = kind.get_guidance_scale_embedding(None, torch.tensor([scale - 1] * 2), embedding_dim=width)
        np.testing.assert_allclose(scale_of_guidance(scale, 2, width), theirs.numpy(), atol=2e-3)
