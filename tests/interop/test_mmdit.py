"""MM-DiT beside diffusers' SD3Transformer2DModel."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.peers import agree, diffusers, drawn, images, torch

SMALL = {"joint_attention_dim": 10, "pooled_projection_dim": 6, "pos_embed_max_size": 8}
CONFIGS = {
    "sd3": {
        **SMALL,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "caption_projection_dim": 16,
    },
    "sd35": {
        **SMALL,
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 5,
        "num_layers": 4,
        "num_attention_heads": 3,
        "attention_head_dim": 4,
        "caption_projection_dim": 12,
        "qk_norm": "rms_norm",
        "dual_attention_layers": (0, 1),
    },
    "patch1": {
        **SMALL,
        "sample_size": 6,
        "patch_size": 1,
        "in_channels": 2,
        "out_channels": 2,
        "num_layers": 1,
        "num_attention_heads": 1,
        "attention_head_dim": 8,
        "caption_projection_dim": 8,
        "dual_attention_layers": (0,),
        "pos_embed_max_size": 12,
    },
}
TIMESTEP = np.array([1000.0, 20.5], np.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_diffusers_computes(name, tmp_path):
    text, pooled = images(2, 5, 10, seed=2), images(2, 6, seed=3)
    model = drawn(diffusers.SD3Transformer2DModel(**CONFIGS[name]))

    def theirs(model, x):
        return model(x, torch.tensor(text), torch.tensor(pooled), torch.tensor(TIMESTEP)).sample

    def ours(network, params, x):
        cond = {"text": jnp.asarray(text), "pooled": jnp.asarray(pooled)}
        return network.apply(params, x, jnp.asarray(TIMESTEP), cond)

    agree(model, theirs, ours, images(2, 8, 12, model.config.in_channels), tmp_path)
