"""Training on latents: what an update draws."""

import dataclasses

import jax
import jax.numpy as jnp

from jdiff.data import Latents
from jdiff.losses import UniformTime, X0Loss
from jdiff.models import MMDiT
from jdiff.prediction import X0
from jdiff.processes import VP
from jdiff.train.trainer import assemble
from tests import recipe


def test_each_update_draws_its_latents():
    """A network that says zero has the loss E|z|^2 = mean^2 + std^2 of the latents it is trained on."""
    experiment = dataclasses.replace(
        recipe.experiment,
        data=Latents(folder="none", pipeline="none", size=4, channels=2, tokens=3),
        network=MMDiT(
            patch_size=2,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=4,
            pooled_projection_dim=6,
            pos_embed_max_size=4,
        ),
        process=VP(),
        parameterization=X0(),
        loss=X0Loss(),
        times=UniformTime(),
        batch_size=64,
    )
    trainer = assemble(experiment, 0)
    assert {name: leaf.shape for name, leaf in trainer.abstract_batch.items()} == {
        "image": (64, 4, 4, 2),
        "spread": (64, 4, 4, 2),
        "index": (64,),
        "text": (64, 3, 4),
        "pooled": (64, 6),
    }
    empty = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in trainer.abstract_batch.items()}
    batch = empty | {"index": jnp.arange(64, dtype=jnp.uint32)}
    step = trainer.step()
    for mean, std in ((0.5, 0.0), (0.5, 2.0)):
        given = batch | {"image": batch["image"] + mean, "spread": batch["spread"] + std}
        with jax.set_mesh(trainer.mesh):
            _, metrics = step(trainer.initial(), given)
        # 2048 values of which each has the variance 2 std^4 + 4 mean^2 std^2.
        error = ((2 * std**4 + 4 * mean**2 * std**2) / 2048) ** 0.5
        assert abs(float(metrics["loss"]) - (mean**2 + std**2)) < 4 * error + 1e-5
