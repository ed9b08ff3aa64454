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

# Fields of transformers' configs that change no output of an encoder: which class it is, how weights were stored and
# drawn, dropout (nothing is dropped from a frozen encoder), labels of classifiers, and how decoders write text.
IGNORED = frozenset(
    {
        "architectures",
        "model_type",
        "transformers_version",
        "tokenizer_class",
        "dtype",
        "torch_dtype",
        "torchscript",
        "use_bfloat16",
        "initializer_factor",
        "initializer_range",
        "dropout",
        "attention_dropout",
        "dropout_rate",
        "classifier_dropout",
        "id2label",
        "label2id",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "prefix",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "return_dict",
        "return_dict_in_generate",
        "tf_legacy_loss",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "use_cache",
        "bos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "remove_invalid_values",
        "repetition_penalty",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
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
