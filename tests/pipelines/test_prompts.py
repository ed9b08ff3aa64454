"""Prompts as conditions: weights act inside their piece."""

import types

import jax.numpy as jnp
import numpy as np

from jdiff.models import EncodedText, Network
from jdiff.pipelines.prompts import CONDITIONS
from jdiff.text import Tokens, emphasized

WIDTH = 3


def encoder():
    """An encoder whose embeddings are its ids and two numbers."""

    def apply(params, ids):
        x = jnp.stack([ids, jnp.ones_like(ids), 2 * ids], -1).astype(jnp.float32)
        return EncodedText(x, x[None], x[:, 0], None)

    return types.SimpleNamespace(network=Network(lambda key: {}, apply))


def test_a_piece_keeps_its_mean_whatever_is_stressed_in_another():
    ids = np.arange(1, 13, dtype=np.int32).reshape(1, 3, 4)
    weights = np.ones((1, 3, 4), np.float32)
    weights[0, 0, 1], weights[0, 2, 3] = 1.5, 0.5
    conditions = lambda weights: np.asarray(
        CONDITIONS["StableDiffusionPipeline"](
            {"text_encoder": encoder()}, {"text_encoder": {}}, {"text_encoder": Tokens(ids, ids > 0, weights)}
        )["text"]
    ).reshape(3, 4, WIDTH)
    plain, stressed = conditions(np.ones_like(weights)), conditions(weights)
    np.testing.assert_array_equal(stressed[1], plain[1])
    for piece in range(3):
        np.testing.assert_allclose(stressed[piece].mean(), plain[piece].mean(), rtol=1e-6)
        np.testing.assert_allclose(stressed[piece], emphasized(plain[piece], weights[0, piece]), rtol=1e-6)
