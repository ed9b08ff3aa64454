"""Prompts as conditions of a text-conditional network: what each family takes of its text encoders.

- Stable Diffusion 1 and 2 (2112.10752): the last hidden state of CLIP's text encoder.
- Stable Diffusion XL (2307.01952): the hidden states before the last layer of two of them, side by side; the pooled
  embedding of the second; sizes and crop of the picture.
- Stable Diffusion 3 (2403.03206): the same two, widened by zeros to the width of T5's, with T5's behind them; both
  pooled embeddings. Without T5, zeros are in its place.

A prompt in pieces is its pieces' embeddings behind one another; what is pooled is that of the first.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jdiff.interop import Pretrained
from jdiff.models import EncodedText
from jdiff.text import Tokens, emphasized
from jdiff.typing import Array, Cond, Params

Networks = dict[str, Pretrained]
AllParams = dict[str, Params]
CLIPS = {
    "StableDiffusionPipeline": {"text_encoder": "tokenizer"},
    "StableDiffusionXLPipeline": {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    "StableDiffusion3Pipeline": {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
}
T5 = {"text_encoder_3": "tokenizer_3"}
T5_TOKENS = 256  # that Stable Diffusion 3 was trained with; its tokenizer would take more


def _pieces(tokens: Tokens) -> Array:
    """Ids [B, N] or [B, pieces, N] -> [B * pieces, N]."""
    return jnp.reshape(tokens.ids, (-1, tokens.ids.shape[-1]))


def _joined(embeddings: Array, tokens: Tokens) -> Array:
    """Embeddings [B * pieces, N, D] of tokens -> [B, pieces * N, D], with their weights; each piece keeps its mean."""
    weighted = emphasized(embeddings, jnp.reshape(tokens.weights, embeddings.shape[:-1]))
    return weighted.reshape(tokens.ids.shape[0], -1, embeddings.shape[-1])


def _clip(networks: Networks, params: AllParams, tokens: dict[str, Tokens], name: str) -> EncodedText:
    return networks[name].network.apply(params[name], _pieces(tokens[name]))


def _first(embeddings: Array, tokens: Tokens) -> Array:
    """[B * pieces, D] -> [B, D], of the first piece."""
    return embeddings.reshape(tokens.ids.shape[0], -1, embeddings.shape[-1])[:, 0]


def sd(networks: Networks, params: AllParams, tokens: dict[str, Tokens]) -> Cond:
    """Conditions of Stable Diffusion 1 and 2."""
    encoded = _clip(networks, params, tokens, "text_encoder")
    return {"text": _joined(encoded.last_hidden_state, tokens["text_encoder"])}


def _both(networks: Networks, params: AllParams, tokens: dict[str, Tokens]) -> tuple[Array, list[Array | None]]:
    """The hidden states of two encoders side by side, and what each pools and projects."""
    names = ("text_encoder", "text_encoder_2")
    encoded = [_clip(networks, params, tokens, name) for name in names]
    parts = [_joined(one.hidden_states[-2], tokens[name]) for one, name in zip(encoded, names, strict=True)]
    pooled = [
        None if one.text_embeds is None else _first(one.text_embeds, tokens[name])
        for one, name in zip(encoded, names, strict=True)
    ]
    return jnp.concatenate(parts, axis=-1), pooled


def sdxl(networks: Networks, params: AllParams, tokens: dict[str, Tokens]) -> Cond:
    """Conditions of Stable Diffusion XL but "time_ids", which are the picture's."""
    text, (_, pooled) = _both(networks, params, tokens)
    if pooled is None:
        raise ValueError("text_encoder_2 must be a CLIPTextModelWithProjection")
    return {"text": text, "pooled": pooled}


def sd3(networks: Networks, params: AllParams, tokens: dict[str, Tokens]) -> Cond:
    """Conditions of Stable Diffusion 3."""
    text, (first, second) = _both(networks, params, tokens)
    if first is None or second is None:
        raise ValueError("text_encoder and text_encoder_2 must be CLIPTextModelWithProjection")
    width = networks["transformer"].config.joint_attention_dim
    text = jnp.pad(text, ((0, 0), (0, 0), (0, width - text.shape[-1])))
    if "text_encoder_3" in networks:
        t5 = tokens["text_encoder_3"]
        behind = networks["text_encoder_3"].network.apply(params["text_encoder_3"], _pieces(t5), None)
        behind = _joined(behind, t5)
    else:
        behind = jnp.zeros((text.shape[0], T5_TOKENS, width), text.dtype)
    return {"text": jnp.concatenate([text, behind], axis=1), "pooled": jnp.concatenate([first, second], axis=-1)}


CONDITIONS: dict[str, Callable[[Networks, AllParams, dict[str, Any]], Cond]] = {
    "StableDiffusionPipeline": sd,
    "StableDiffusionXLPipeline": sdxl,
    "StableDiffusion3Pipeline": sd3,
}
