"""DiT beside diffusers' DiTTransformer2DModel."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.peers import agree, diffusers, drawn, images, torch

CONFIGS = {
    "plain": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_embeds_ada_norm": 5},
    "variance": {
        "num_layers": 3,
        "num_attention_heads": 3,
        "attention_head_dim": 4,
        "out_channels": 8,
        "patch_size": 4,
        "num_embeds_ada_norm": 7,
        "norm_eps": 1e-3,
    },
    "no_bias": {
        "num_layers": 1,
        "num_attention_heads": 1,
        "attention_head_dim": 16,
        "in_channels": 3,
        "patch_size": 1,
        "attention_bias": False,
        "num_embeds_ada_norm": 1,
    },
}
TIMESTEP, LABEL = np.array([999.0, 3.0], np.float32), np.array([1, 0])


def made(name):
    model = drawn(diffusers.DiTTransformer2DModel(**CONFIGS[name], sample_size=8))
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return model


def theirs(model, x):
    return model(x, torch.tensor(TIMESTEP), torch.tensor(LABEL)).sample


def ours(network, params, x):
    return network.apply(params, x, jnp.asarray(TIMESTEP), {"label": jnp.asarray(LABEL)})


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [8, 12])
def test_it_computes_what_diffusers_computes(name, size, tmp_path):
    model = made(name)
    agree(model, theirs, ours, images(2, size, size, model.config.in_channels), tmp_path)
