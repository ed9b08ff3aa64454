"""U-Nets of images beside diffusers' UNet2DModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.models import UNet2D, functional
from tests.interop.peers import agree, diffusers, drawn, images, torch
from tests.models.draws import drawn as drawn_here

SMALL = {"sample_size": 8, "norm_num_groups": 4, "layers_per_block": 1}
CONFIGS = {
    "ddpm": {
        **SMALL,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
    },
    "adm": {
        **SMALL,
        "layers_per_block": 2,
        "out_channels": 6,
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "attention_head_dim": 4,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 2,
        "num_class_embeds": 5,
    },
    "ncsnpp": {
        **SMALL,
        "norm_num_groups": None,
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "attention_head_dim": None,
        "mid_block_scale_factor": 1.41421356237,
        "time_embedding_type": "fourier",
        "norm_eps": 1e-6,
    },
    "learned": {
        **SMALL,
        "in_channels": 2,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_type": "learned",
        "num_train_timesteps": 1000,
        "class_embed_type": "identity",
    },
    "no_attention": {
        **SMALL,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
        "time_embedding_dim": 12,
        "class_embed_type": "timestep",
        "center_input_sample": True,
        "act_fn": "swish",
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_diffusers_computes(name, tmp_path):
    labels = {"adm": np.array([4, 0]), "no_attention": np.float32([7, 950]), "learned": images(2, 32, seed=3)}
    cond = {"label": labels[name]} if name in labels else {}
    timestep = np.array([3.5, 0.02], np.float32) if name == "ncsnpp" else np.array([999.0, 1.0], np.float32)
    if name == "learned":
        timestep = timestep.astype(np.int64)
    model = drawn(diffusers.UNet2DModel(**CONFIGS[name]))

    def theirs(model, x):
        given = {"class_labels": torch.tensor(cond["label"])} if cond else {}
        return model(x, torch.tensor(timestep), **given).sample

    def ours(network, params, x):
        return network.apply(params, x, jnp.asarray(timestep), jax.tree.map(jnp.asarray, cond))

    agree(model, theirs, ours, images(2, 8, 12, model.config.in_channels), tmp_path)


def test_a_learned_timestep_outside_its_table_is_the_nearest_inside():
    fields = CONFIGS["learned"] | {"class_embed_type": None, "num_train_timesteps": 5}
    network = functional(UNet2D(**fields).module)
    params, x = drawn_here(network), images(4, 8, 8, 2)
    out = network.apply(params, x, jnp.float32([-3, 0, 4, 900]), {})
    assert np.isfinite(out).all()
    inside = network.apply(params, x, jnp.float32([0, 0, 4, 4]), {})
    np.testing.assert_allclose(out, inside, atol=1e-6)
    assert np.abs(out[0] - out[3]).max() > 1e-4
