"""Pipelines of diffusers by their classes: which parts they have, and what an index without an entry means.

Many classes hold the same parts and differ in what they do with them, so that their folders serve here as well. A part
is required, or optional where its name ends in "?".
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Kind(NamedTuple):
    """What a pipeline's class has."""

    base: str
    """The class whose parts it has."""
    parts: tuple[str, ...]
    scheduler: str | None = None
    """The class of scheduler that it makes of any other."""
    sizes: bool = False
    """Whether it takes a U-Net's size below 64 that a version before 0.9 wrote for 64."""
    settings: Mapping[str, Any] = NOTHING
    """What model_index.json says where it says nothing."""


SD, XL, SD3 = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"
SD_PARTS = ("scheduler", "vae", "unet", "text_encoder", "tokenizer")
XL_PARTS = (*SD_PARTS, "text_encoder_2", "tokenizer_2")
SD3_PARTS = ("scheduler", "vae", "transformer", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
SD3_PARTS += ("text_encoder_3?", "tokenizer_3?")

_sd, _sized = Kind(SD, SD_PARTS), Kind(SD, SD_PARTS, sizes=True)
_xl = Kind(XL, XL_PARTS, settings={"force_zeros_for_empty_prompt": True})
TEXT_TO_IMAGE = {
    SD: _sized,
    "StableDiffusionImg2ImgPipeline": _sized,
    "StableDiffusionInpaintPipeline": _sized,
    "StableDiffusionInpaintPipelineLegacy": _sized,
    "StableDiffusionPipelineSafe": _sized,
    "StableDiffusionPAGPipeline": _sized,
    "StableDiffusionInstructPix2PixPipeline": _sd,
    "StableDiffusionUpscalePipeline": _sd,
    "StableDiffusionDepth2ImgPipeline": _sized,
    "StableDiffusionPanoramaPipeline": _sd,
    "StableDiffusionAttendAndExcitePipeline": _sd,
    "StableDiffusionSAGPipeline": _sd,
    "LatentConsistencyModelPipeline": _sd,
    "LatentConsistencyModelImg2ImgPipeline": _sd,
    XL: _xl,
    "StableDiffusionXLImg2ImgPipeline": _xl,
    "StableDiffusionXLInpaintPipeline": _xl,
    "StableDiffusionXLInstructPix2PixPipeline": _xl,
    "StableDiffusionXLPAGPipeline": _xl,
    SD3: Kind(SD3, SD3_PARTS),
    "StableDiffusion3Img2ImgPipeline": Kind(SD3, SD3_PARTS),
    "StableDiffusion3InpaintPipeline": Kind(SD3, SD3_PARTS),
}
CLASS_TO_IMAGE = {
    "DDPMPipeline": Kind("DDPMPipeline", ("scheduler", "unet")),
    "DDIMPipeline": Kind("DDIMPipeline", ("scheduler", "unet"), "DDIMScheduler"),
    "DiTPipeline": Kind("DiTPipeline", ("scheduler", "transformer", "vae")),
}
# Parts that folders hold and that are not run here: a classifier of pictures, what prepares pictures for encoders, and
# what belongs to networks that take more than latents.
NOT_RUN = ("safety_checker", "feature_extractor", "image_encoder", "watermarker", "low_res_scheduler")
NOT_RUN += ("depth_estimator",)
# What a network takes besides latents of so many channels, by the number of those that are more.
MORE_CHANNELS = {
    1: "a map of depths",
    3: "a small picture, which it enlarges",
    4: "the latents of a picture, which it changes",
    5: "a mask and the latents of a masked picture, which it fills in",
}
