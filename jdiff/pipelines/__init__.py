"""Networks, autoencoder, text encoders, process and solver as one callable, trained here or read from a folder."""

from jdiff.pipelines.class_to_image import ClassToImage
from jdiff.pipelines.encode import ImageCoder, PromptEncoder, image_coder, prompt_encoder
from jdiff.pipelines.image_scores import HEADS, ClipScorer, HeadScorer
from jdiff.pipelines.images import Pipeline, Sampling
from jdiff.pipelines.text_to_image import TextToImage

__all__ = [
    "HEADS",
    "ClassToImage",
    "ClipScorer",
    "HeadScorer",
    "ImageCoder",
    "Pipeline",
    "PromptEncoder",
    "Sampling",
    "TextToImage",
    "image_coder",
    "prompt_encoder",
]
