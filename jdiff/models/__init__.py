"""Networks. The only folder that imports Flax: everywhere else a network is a `Network`, two pure functions.

network = build(DiT(num_layers=6, num_attention_heads=4, attention_head_dim=64), size=32, channels=3, num_classes=10)
params = network.init(jax.random.key(0))
raw = network.apply(params, x, noise_label, {"label": label})
"""

from jdiff.models.attention import AxialAttention, FullAttention, LinearAttention, StridedAttention, WindowedAttention
from jdiff.models.autoencoder_kl import AutoencoderKL, Posterior
from jdiff.models.autoencoder_tiny import AutoencoderTiny
from jdiff.models.autoencoder_vq import Quantized, VQModel
from jdiff.models.classifier import Classifier
from jdiff.models.clip import CLIPText, CLIPTextWithProjection, EncodedText
from jdiff.models.clip_vision import CLIPVisionWithProjection, EncodedImage
from jdiff.models.compute import Compute
from jdiff.models.discriminator import (
    PatchDiscriminator,
    hinge_discriminator,
    hinge_generator,
    non_saturating_discriminator,
    non_saturating_generator,
)
from jdiff.models.dit import DiT
from jdiff.models.embeddings import timesteps
from jdiff.models.functional import Network, functional
from jdiff.models.jit import JiT
from jdiff.models.mmdit import MMDiT
from jdiff.models.regularize import Regularization
from jdiff.models.t5 import T5Encoder
from jdiff.models.unet import UNet
from jdiff.models.unet_2d import UNet2D
from jdiff.models.unet_condition import UNet2DCondition
from jdiff.models.unet_edm import DhariwalUNet, SongUNet

# Those whose weights go in and out of folders in the layout of diffusers, where each is called `published`.
CONFIGS = (
    AutoencoderKL,
    AutoencoderTiny,
    VQModel,
    DiT,
    MMDiT,
    UNet2D,
    UNet2DCondition,
    CLIPText,
    CLIPTextWithProjection,
    CLIPVisionWithProjection,
    T5Encoder,
    SongUNet,
    DhariwalUNet,
)

__all__ = [
    "CONFIGS",
    "AutoencoderKL",
    "AutoencoderTiny",
    "AxialAttention",
    "CLIPText",
    "CLIPTextWithProjection",
    "CLIPVisionWithProjection",
    "Classifier",
    "Compute",
    "DhariwalUNet",
    "DiT",
    "EncodedImage",
    "EncodedText",
    "FullAttention",
    "JiT",
    "LinearAttention",
    "MMDiT",
    "Network",
    "PatchDiscriminator",
    "Posterior",
    "Quantized",
    "Regularization",
    "SongUNet",
    "StridedAttention",
    "T5Encoder",
    "UNet",
    "UNet2D",
    "UNet2DCondition",
    "VQModel",
    "WindowedAttention",
    "build",
    "functional",
    "hinge_discriminator",
    "hinge_generator",
    "non_saturating_discriminator",
    "non_saturating_generator",
    "timesteps",
]


def build(
    config: UNet | DiT | JiT | SongUNet | DhariwalUNet | MMDiT | UNet2DCondition,
    *,
    size: int,
    channels: int,
    num_classes: int,
    out_channels: int | None = None,
) -> Network:
    """The network of `config` from images [B, size, size, channels] to [B, size, size, out_channels].

    `out_channels` is `channels` unless given: a parameterization may ask for more (`Parameterization.out_channels`).

    With `num_classes` > 0 it takes `cond={"label": integers [B]}`, where label == num_classes means no label; with 0
    it takes an empty `cond`. Noise labels are t in [0, 1], or log(sigma) / 4 for EDM; a thousand times that is what
    networks call the timestep, but for those of EDM, which take the label itself. MMDiT and UNet2DCondition also take
    what their `conditions` say in `cond`; the others' output starts at zero, and they take a `regularization`, for
    training. Raises `ValueError` when `size` is not a multiple of what `config` needs.
    """
    if size <= 0 or size % config.divisor:
        raise ValueError(f"size: {size} is not a positive multiple of {config.divisor}, which {config} needs")
    out = channels if out_channels is None else out_channels
    network = functional(config.for_images(size=size, channels=channels, out_channels=out, num_classes=num_classes))
    apply, scale = network.apply, 1.0 if isinstance(config, SongUNet | DhariwalUNet) else 1000.0
    return Network(
        network.init,
        lambda params, x, noise_label, cond, **options: apply(params, x, scale * noise_label, cond, **options),
    )
