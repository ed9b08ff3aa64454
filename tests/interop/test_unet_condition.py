"""The text-conditional U-Net beside diffusers' UNet2DConditionModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
TIMESTEP = np.array([999.0, 1.0], np.float32)


def conditions(config):
    """Those that a config asks for, as numpy."""
    cond = {"text": images(2, 5, config["cross_attention_dim"], seed=2)}
    if "num_class_embeds" in config:
        cond["label"] = np.array([4, 0])
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
        text = torch.tensor(cond["text"])
        return model(x, torch.tensor(TIMESTEP), text, class_labels=label, added_cond_kwargs=added).sample

    def ours(network, params, x):
        return network.apply(params, x, jnp.asarray(TIMESTEP), jax.tree.map(jnp.asarray, cond))

    agree(model, theirs, ours, images(2, 8, 12, model.config.in_channels), tmp_path)
