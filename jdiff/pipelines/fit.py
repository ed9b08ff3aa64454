"""Whether the parts of a text-to-image pipeline fit together, from their configs alone, and before any weight is read.

A network that takes more than noisy latents and a prompt is refused with what it takes: its parts can still be read one
by one (`jdiff.interop.from_pretrained`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jdiff.models import AutoencoderKL, AutoencoderTiny, CLIPTextWithProjection, DiT, MMDiT, UNet2D, UNet2DCondition
from jdiff.pipelines.kinds import MORE_CHANNELS, SD3, XL
from jdiff.text import Tokenizer

TIME_IDS = 6  # numbers that say a picture's sizes and crop


def check_parts(source: str, base: str, configs: Mapping[str, Any]) -> None:
    """Raises ValueError, with the name of the part, unless the networks of a pipeline like `base` can draw from
    prompts."""
    core = "transformer" if base == SD3 else "unet"
    kinds = {core: MMDiT if base == SD3 else UNet2DCondition, "vae": AutoencoderKL | AutoencoderTiny}
    for name, kind in kinds.items():
        if not isinstance(configs[name], kind):
            raise ValueError(f"{source}: {name} is a {configs[name].published}, which {base} has not")
    check_channels(source, core, configs[core], configs["vae"])
    problem = _transformer(configs) if base == SD3 else _unet(base, configs)
    if problem:
        raise ValueError(f"{source}: {core} {problem}")


def check_classes(source: str, base: str, configs: Mapping[str, Any]) -> None:
    """Raises ValueError, with the name of the part, unless the networks of a pipeline like `base` can draw from
    classes."""
    core = "transformer" if base == "DiTPipeline" else "unet"
    network, kind = configs[core], DiT if base == "DiTPipeline" else UNet2D
    if not isinstance(network, kind):
        raise ValueError(f"{source}: {core} is a {network.published}, which {base} has not")
    if isinstance(network, UNet2D) and network.class_embed_type is not None:
        raise ValueError(f"{source}: {core} takes a label (class_embed_type={network.class_embed_type!r}), no class")
    if "vae" in configs and network.in_channels != configs["vae"].latent_channels:
        raise ValueError(
            f"{source}: {core} takes {network.in_channels} channels where latents have {configs['vae'].latent_channels}"
        )
    out = network.in_channels if network.out_channels is None else network.out_channels
    if out not in (network.in_channels, 2 * network.in_channels):
        raise ValueError(f"{source}: {core} gives {out} channels of {network.in_channels}, not those or twice those")
    if network.sample_size is None:
        raise ValueError(f"{source}: {core} does not say the size that it was trained on (sample_size)")


def check_channels(source: str, core: str, network: Any, vae: Any) -> None:
    """Raises ValueError unless a network takes the latents of an autoencoder and no more, and predicts as many."""
    more = network.in_channels - vae.latent_channels
    if more:
        known = more in MORE_CHANNELS
        what = f": it also takes {MORE_CHANNELS[more]}, and a prompt alone is not enough" if known else ""
        raise ValueError(
            f"{source}: {core} takes {network.in_channels} channels where latents have {vae.latent_channels}{what}"
        )
    out = network.in_channels if network.out_channels is None else network.out_channels
    if out != network.in_channels:
        raise ValueError(f"{source}: {core} gives {out} channels where latents have {vae.latent_channels}")


def check_tokenizer(source: str, name: str, tokenizer: Tokenizer, encoder: Any) -> None:
    """Raises ValueError for a tokenizer that makes prompts longer than its encoder takes."""
    most = getattr(encoder, "max_position_embeddings", tokenizer.limit)
    if tokenizer.limit > most:
        raise ValueError(f"{source}: {name} makes {tokenizer.limit} tokens of a prompt, and its encoder takes {most}")


def check_ids(encoder: str, config: Any, ids: np.ndarray) -> None:
    """Raises ValueError for tokens that the encoder has no embeddings of: the tokenizer is another's."""
    if ids.size and ids.max() >= config.vocab_size:
        raise ValueError(f"{encoder} has {config.vocab_size} embeddings, and its tokenizer gave token {ids.max()}")


def _unet(base: str, configs: Mapping[str, Any]) -> str:
    unet = configs["unet"]
    if unet.labelled:
        return f"takes a label (class_embed_type={unet.class_embed_type!r}), and a prompt alone is not enough"
    if isinstance(unet.cross_attention_dim, tuple) and len(set(unet.cross_attention_dim)) > 1:
        return f"takes texts of several widths, cross_attention_dim={unet.cross_attention_dim}"
    names = ("text_encoder", "text_encoder_2") if base == XL else ("text_encoder",)
    width = sum(configs[name].hidden_size for name in names)
    if width != unet.text_width:
        return f"takes texts of width {unet.text_width}, and {' and '.join(names)} give {width}"
    if (unet.addition_embed_type is not None) != (base == XL):
        return f"has addition_embed_type={unet.addition_embed_type!r}, which {base} has not"
    return _sizes(configs) if base == XL else ""


def _sizes(configs: Mapping[str, Any]) -> str:
    """What does not fit of a picture's sizes and of the pooled text."""
    unet, second = configs["unet"], configs["text_encoder_2"]
    if not isinstance(second, CLIPTextWithProjection):
        return "takes a pooled text, and text_encoder_2 is no CLIPTextModelWithProjection"
    numbers = (unet.projection_class_embeddings_input_dim - second.projection_dim) / unet.addition_time_embed_dim
    if numbers == TIME_IDS - 1:
        return "takes an aesthetic score: it refines pictures, and a prompt alone is not enough"
    if numbers != TIME_IDS:
        return (
            f"takes {unet.projection_class_embeddings_input_dim} numbers of the pooled text and the picture's sizes, "
            f"and gets {second.projection_dim} + {TIME_IDS} x {unet.addition_time_embed_dim}"
        )
    return ""


def _transformer(configs: Mapping[str, Any]) -> str:
    transformer, clips = configs["transformer"], [configs["text_encoder"], configs["text_encoder_2"]]
    if not all(isinstance(clip, CLIPTextWithProjection) for clip in clips):
        return "takes pooled texts: text_encoder and text_encoder_2 must be CLIPTextModelWithProjection"
    width, pooled = sum(clip.hidden_size for clip in clips), sum(clip.projection_dim for clip in clips)
    t5 = configs["text_encoder_3"].d_model if "text_encoder_3" in configs else transformer.joint_attention_dim
    if width > transformer.joint_attention_dim or t5 != transformer.joint_attention_dim:
        return f"takes texts of width {transformer.joint_attention_dim}, and the encoders give {width} and {t5}"
    if pooled != transformer.pooled_projection_dim:
        return f"takes pooled texts of width {transformer.pooled_projection_dim}, and the encoders give {pooled}"
    return ""
