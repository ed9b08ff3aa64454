"""Pipelines without text beside diffusers': DDIM on pixels, with its clipping, and DiT with classes and guidance."""

import numpy as np

from jdiff import ClassToImage
from tests.interop.peers import diffusers, drawn, nhwc, torch
from tests.interop.test_dit import CONFIGS
from tests.interop.test_text_to_image import autoencoder

CLOSE, STEPS = 1e-3, 10


def test_ddim_on_pixels(tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
    )
    pipe = diffusers.DDIMPipeline(drawn(unet, scale=0.02), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipe")
    generator = torch.Generator().manual_seed(0)
    theirs = pipe(batch_size=2, generator=generator, num_inference_steps=STEPS, output_type="np").images
    start = nhwc(torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0)))
    ours = ClassToImage.from_pretrained(tmp_path / "pipe")
    drawn_here = ours(seeds=[0, 1], steps=STEPS, latents=start)
    assert np.abs((drawn_here + 1) / 2 - theirs).max() < CLOSE
    assert (np.abs(drawn_here) > 0.999).any()  # so that clipping is seen


def test_dit(tmp_path):
    config = CONFIGS["plain"] | {"out_channels": 8, "num_embeds_ada_norm": 1000}
    dit = drawn(diffusers.DiTTransformer2DModel(**config, sample_size=8), scale=0.02)
    first = dit.transformer_blocks[0].norm1.emb.state_dict()
    for block in dit.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    pipe = diffusers.DiTPipeline(dit, autoencoder(), diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipe")
    generator = torch.Generator().manual_seed(0)
    theirs = pipe([7, 999], 4.0, generator, STEPS, output_type="np").images
    start = nhwc(torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0)))
    ours = ClassToImage.from_pretrained(tmp_path / "pipe")
    got = ours(seeds=[0, 1], labels=[7, 999], steps=STEPS, guidance=4.0, latents=start)
    assert np.abs((got + 1) / 2 - theirs).max() < CLOSE
    assert np.abs(got - ours(seeds=[0, 1], labels=[7, 999], steps=STEPS, latents=start)).max() > CLOSE
