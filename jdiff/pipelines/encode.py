"""Encoders of a folder on their own: images to the moments of their latents, prompts to conditions.

The autoencoder says q(z | x) = N(mean, diag(std^2)) of an image's latents, std = exp(log_variance / 2) (1312.6114).
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.interop import Pretrained, from_pretrained, read_config
from jdiff.interop.pretrained import located
from jdiff.models import AutoencoderKL, Network
from jdiff.pipelines.fit import check_tokenizer
from jdiff.pipelines.folder import INDEX, config_class, read_index
from jdiff.pipelines.kinds import TEXT_TO_IMAGE
from jdiff.pipelines.prompts import CLIPS, CONDITIONS, T5, T5_TOKENS
from jdiff.text import load_tokenizer
from jdiff.typing import Array

_NONE = Network(lambda key: {}, lambda *_, **__: {})


class ImageCoder(NamedTuple):
    """An autoencoder."""

    encode: Callable[[np.ndarray], tuple[Array, Array]]
    """Images [B, H, W, 3] in [-1, 1] to mean and standard deviation, float32 [B, h, w, c], before they are scaled."""
    decode: Callable[[np.ndarray], Array]
    """Scaled latents [B, h, w, c] to images [B, H, W, 3] in [-1, 1]."""
    divisor: int
    """How many times the edge of an image is that of its latents."""
    scaling: dict[str, list[float]]
    """"shift" and "scale" [c]: (latents - shift) * scale is what a diffusion model takes."""
    fingerprint: str
    """SHA-256 of its config and parameters."""


class PromptEncoder(NamedTuple):
    """The text encoders of a pipeline."""

    encode: Callable[[Sequence[str]], dict[str, Array]]
    """Prompts to the conditions of the pipeline's network."""
    fits: Callable[[str], bool]
    """Whether a prompt has no more tokens than the encoders take."""
    fingerprint: str
    """SHA-256 of their configs, parameters and tokenizers."""


def image_coder(source: str | os.PathLike) -> ImageCoder:
    """The autoencoder of a folder of its own, or of a pipeline's. Raises as `from_pretrained` does."""
    folder = located(source)
    part = from_pretrained(folder / "vae" if (folder / INDEX).exists() else folder, expected=AutoencoderKL)

    @jax.jit
    def moments(params: Any, images: Array) -> tuple[Array, Array]:
        posterior = part.network.apply(params, images, method="encode")
        return posterior.mean, jnp.exp(posterior.log_variance / 2)

    @jax.jit
    def images(params: Any, latents: Array) -> Array:
        return jnp.clip(part.network.apply(params, part.config.restored(latents), method="decode"), -1, 1)

    # It is affine, so two points tell it.
    at = lambda value: np.asarray(part.config.standardized(jnp.full(part.config.latent_channels, value)), np.float64)
    scale = at(1.0) - at(0.0)
    scaling = {"shift": (-at(0.0) / scale).tolist(), "scale": scale.tolist()}
    return ImageCoder(
        partial(moments, part.params),
        partial(images, part.params),
        part.config.divisor,
        scaling,
        _fingerprint([part]),
    )


def prompt_encoder(source: str | os.PathLike) -> PromptEncoder:
    """The text encoders and tokenizers of a folder of Stable Diffusion 1, 2, XL or 3; the rest of it is not read.

    "time_ids" of XL are the picture's, and not among the conditions. Raises ValueError for another folder, and as
    `from_pretrained` and `load_tokenizer` do.
    """
    folder = located(source)
    if not (folder / INDEX).exists():
        raise ValueError(f"{folder} is no pipeline: it has no {INDEX}, which says what its text encoders are")
    index = read_index(folder)
    if index.kind not in TEXT_TO_IMAGE:
        raise ValueError(f"{folder} is a {index.kind}; there are {', '.join(TEXT_TO_IMAGE)}")
    kind = TEXT_TO_IMAGE[index.kind].base
    there = lambda name: name in index.parts
    names = CLIPS[kind] | ({name: tokenizer for name, tokenizer in T5.items() if there(name)})
    missing = [name for name in names if not there(name)]
    if missing:
        raise ValueError(f"{folder}: parts missing {missing}")
    tokenizers, encoders = {}, {}
    for name, part in names.items():
        config = read_config(folder / name / "config.json", config_class(index, name, folder))
        limit, usual = {"text_encoder_3": T5_TOKENS}.get(name), getattr(config, "max_position_embeddings", None)
        tokenizers[name] = load_tokenizer(folder / part, limit=limit, usual=usual)
        check_tokenizer(str(folder), part, tokenizers[name], config)
    for name in names:
        encoders[name] = from_pretrained(folder / name, expected=config_class(index, name, folder))
    # Stable Diffusion 3 makes prompts as wide as its transformer takes them, whose parameters are not needed.
    networks = encoders | {
        name: Pretrained(read_config(folder / name / "config.json"), _NONE, {}, [])
        for name in ("transformer",)
        if there(name)
    }
    apply = jax.jit(partial(CONDITIONS[kind], {name: part._replace(params={}) for name, part in networks.items()}))
    params = {name: part.params for name, part in networks.items()}

    def encode(prompts: Sequence[str]) -> dict[str, Array]:
        return dict(apply(params, {name: tokenizer(list(prompts)) for name, tokenizer in tokenizers.items()}))

    def fits(prompt: str) -> bool:
        try:
            for tokenizer in tokenizers.values():
                tokenizer([prompt])
        except ValueError:
            return False
        return True

    words = [tokenizer.backend.to_str() for tokenizer in tokenizers.values()]
    return PromptEncoder(encode, fits, _fingerprint(list(encoders.values()), kind, *words))


def _fingerprint(parts: Sequence[Pretrained], *others: str) -> str:
    digest = hashlib.sha256(repr(([part.config for part in parts], others)).encode())
    for part in parts:
        for path, leaf in jax.tree_util.tree_leaves_with_path(part.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
