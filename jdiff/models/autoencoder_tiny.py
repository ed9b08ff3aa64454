"""TAESD, a small autoencoder distilled from a large one whose latents it has (github.com/madebyollin/taesd).

Blocks relu(x + conv(relu(conv(relu(conv(x)))))) without normalization. Images are moved from [-1, 1] to [0, 1] before
the encoder and back after the decoder, and latents z are bounded smoothly before it: 3 tanh(z / 3).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.compute import PLAIN, Compute, rematerialized
from jdiff.models.convolution import conv
from jdiff.typing import Array

BOUND = 3.0


@dataclass(frozen=True, kw_only=True)
class AutoencoderTiny:
    """A TAESD, with the fields of diffusers' AutoencoderTiny; the defaults are that of Stable Diffusion 1 and 2.

    Images are [B, H, W, in_channels], H and W multiples of `divisor`. Raises ValueError for other than one width in
    each half and one number of blocks a level.
    """

    published: ClassVar[str] = "AutoencoderTiny"
    fixed: ClassVar[dict] = {"act_fn": "relu", "upsample_fn": "nearest"}
    # A second name of the decoder's widths, which diffusers adds when it saves.
    ignored: ClassVar[frozenset] = frozenset({"block_out_channels"})

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    latent_channels: int = 4
    upsampling_scaling_factor: int = 2
    """What each level of the decoder but the last multiplies the edge by; those of the encoder halve it."""
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3
    """Half the range of the latents that `scale_latents` keeps."""
    latent_shift: float = 0.5
    force_upcast: bool = False
    """Whether its activations overflow in float16, so that float32 takes its place."""
    scaling_factor: float = 1.0
    """What latents are multiplied by to have unit variance, which they have."""
    shift_factor: float = 0.0
    """What is taken away from them before."""
    compute: Compute = PLAIN

    def __post_init__(self):
        for half in ("encoder", "decoder"):
            widths = getattr(self, f"{half}_block_out_channels")
            blocks = getattr(self, f"num_{half}_blocks")
            if len(set(widths)) != 1:
                raise ValueError(f"{half}_block_out_channels: {widths} are not all the same")
            if len(blocks) != len(widths):
                raise ValueError(
                    f"num_{half}_blocks: {blocks} has {len(blocks)} entries for {len(widths)} {half}_block_out_channels"
                )

    @property
    def divisor(self) -> int:
        """How many times the edge of an image is that of its latents."""
        return 2 ** (len(self.num_encoder_blocks) - 1)

    def standardized(self, latents: Array) -> Array:
        """Latents as a diffusion model takes them, of about unit variance."""
        return (latents - self.shift_factor) * self.scaling_factor

    def restored(self, latents: Array) -> Array:
        """The inverse of `standardized`: as `decode` takes them."""
        return latents / self.scaling_factor + self.shift_factor

    def scale_latents(self, latents: Array) -> Array:
        """Latents as numbers in [0, 1], such as pixels; what is out of range becomes its end."""
        return jnp.clip(latents / (2 * self.latent_magnitude) + self.latent_shift, 0, 1)

    def unscale_latents(self, pixels: Array) -> Array:
        """The inverse of `scale_latents` where nothing was out of range."""
        return (pixels - self.latent_shift) * (2 * self.latent_magnitude)

    def module(self, rngs: nnx.Rngs) -> "AutoencoderTinyModule":
        """`encode`: images -> latents; `decode`: latents -> images; called, it reconstructs images."""
        config = replace(self, compute=self.compute.upcast) if self.force_upcast else self
        return AutoencoderTinyModule(config, rngs=rngs)


class Block(nnx.Module):
    """[B, H, W, width] -> [B, H, W, width]."""

    def __init__(self, width: int, compute: Compute, *, rngs: nnx.Rngs):
        layer, self.compute = lambda: conv(width, width, compute, rngs=rngs), compute
        self.conv = nnx.List([layer(), jax.nn.relu, layer(), jax.nn.relu, layer()])

    @rematerialized
    def __call__(self, x: Array) -> Array:
        hidden = x
        for layer in self.conv:
            hidden = layer(hidden)
        return jax.nn.relu(x + hidden)


class Layers(nnx.Module):
    """Layers in a row: (x) -> x. Their numbers are their names."""

    def __init__(self, layers: list):
        self.layers = nnx.List(layers)

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


def _encoder(config: AutoencoderTiny, rngs: nnx.Rngs) -> Layers:
    width, compute, layers = config.encoder_block_out_channels[0], config.compute, []
    for i, count in enumerate(config.num_encoder_blocks):
        halving = lambda: conv(width, width, compute, stride=2, use_bias=False, rngs=rngs)
        layers.append(halving() if i else conv(config.in_channels, width, compute, rngs=rngs))
        layers += [Block(width, compute, rngs=rngs) for _ in range(count)]
    return Layers([*layers, conv(width, config.latent_channels, compute, rngs=rngs)])


def _decoder(config: AutoencoderTiny, rngs: nnx.Rngs) -> Layers:
    width, compute = config.decoder_block_out_channels[0], config.compute
    layers = [conv(config.latent_channels, width, compute, rngs=rngs), jax.nn.relu]
    *before, last = config.num_decoder_blocks
    for count in before:
        layers += [Block(width, compute, rngs=rngs) for _ in range(count)]
        layers += [Repeat(config.upsampling_scaling_factor), conv(width, width, compute, use_bias=False, rngs=rngs)]
    layers += [Block(width, compute, rngs=rngs) for _ in range(last)]
    return Layers([*layers, conv(width, config.out_channels, compute, rngs=rngs)])


class Repeat(nnx.Module):
    """[B, H, W, C] -> [B, factor H, factor W, C], every pixel factor^2 times."""

    def __init__(self, factor: int):
        self.factor = factor

    def __call__(self, x: Array) -> Array:
        return jnp.repeat(jnp.repeat(x, self.factor, axis=1), self.factor, axis=2)


class AutoencoderTinyModule(nnx.Module):
    """The network that an `AutoencoderTiny` describes."""

    def __init__(self, config: AutoencoderTiny, *, rngs: nnx.Rngs):
        self.divisor = config.divisor
        self.encoder, self.decoder = _encoder(config, rngs), _decoder(config, rngs)

    def encode(self, x: Array) -> Array:
        """Latents [B, h, w, latent_channels] of images [B, H, W, in_channels] in [-1, 1]. Raises ValueError for a size
        that cannot be halved so often."""
        if x.shape[1] % self.divisor or x.shape[2] % self.divisor:
            raise ValueError(f"x: an image of {x.shape[1]}x{x.shape[2]} pixels; multiples of {self.divisor} wanted")
        return self.encoder((x + 1) / 2).astype(x.dtype)

    def decode(self, latents: Array) -> Array:
        """The images [B, H, W, out_channels] of latents [B, h, w, latent_channels]."""
        return 2 * self.decoder(BOUND * jnp.tanh(latents / BOUND)).astype(latents.dtype) - 1

    def __call__(self, x: Array) -> Array:
        """Images [B, H, W, in_channels] through their latents and back; nothing is rounded to bytes on the way."""
        return self.decode(self.encode(x))
