"""What encoders of prompts and pictures share: activations, the check of token ids, and what their configs say in vain.

Sigmoid-weighted units (2017, 1606.08415): gelu x Phi(x), its tanh approximation, and x sigmoid(1.702 x), which OpenAI's
CLIP was trained with.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdiff.typing import Array

# Under transformers' names.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

# Fields of transformers' configs that change no output of an encoder, where they are among those of the class.
IGNORED = frozenset(
    {
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "dropout_rate",
        "dtype",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "tie_word_embeddings",
        "transformers_version",
        "use_cache",
    }
)


def check_ids(ids: Array, limit: int | None = None) -> None:
    """Raises ValueError unless `ids` are integers [B, N] with N up to `limit`."""
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"ids: integers [B, N] wanted, got {ids.dtype} {ids.shape}")
    if limit is not None and ids.shape[1] > limit:
        raise ValueError(f"ids: {ids.shape[1]} tokens, and the encoder has {limit} positions")


def check_activation(field: str, name: str) -> None:
    """Raises ValueError for an activation that is not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{field}: {name!r} is not one of {', '.join(ACTIVATIONS)}")
