"""The autoencoder of latent diffusion (Rombach et al., 2112.10752; Kingma & Welling, 1312.6114), and its two halves.

The encoder says a normal distribution of latents for an image, one mean and one variance a number:

    q(z | x) = N(mean(x), diag(exp(log_variance(x)))),      log_variance clipped to [-30, 20]
    KL(q(z | x) || N(0, 1)) = sum (mean^2 + exp(log_variance) - 1 - log_variance) / 2

Both halves are levels of residual blocks; each level but the last halves the edge of the image (the encoder) or
doubles it (the decoder). In their middle all pixels attend to one another. No equal blocks are stacked here, so
`Compute.scan` changes nothing.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.compute import PLAIN, Compute
from jdiff.models.convolution import Downsample, GroupNorm, PixelAttention, ResnetBlock, Upsample, conv
from jdiff.typing import Array, Key

EPS = 1e-6  # of every normalization
# Kinds of levels, and whether an attention follows each of their residual blocks.
DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


@dataclass(frozen=True, kw_only=True)
class Halves:
    """What an encoder and a decoder are made of; the fields that diffusers' autoencoders share.

    Raises ValueError for kinds of levels that there are not or not one a level, and for groups that do not divide.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    """Of each level of the encoder: this, or "AttnDownEncoderBlock2D"."""
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    """Of each level of the decoder, from the latents on: this, or "AttnUpDecoderBlock2D"."""
    block_out_channels: tuple[int, ...] = (64,)
    """Channels of each level, from the image on."""
    layers_per_block: int = 1
    """Residual blocks of a level of the encoder; the decoder has one more."""
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    """Edge of the images that it was made for, which changes nothing."""
    scaling_factor: float = 0.18215
    """What latents are multiplied by to have unit variance."""
    mid_block_add_attention: bool = True
    compute: Compute = PLAIN

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name, kinds in (("down_block_types", DOWN), ("up_block_types", UP)):
            given = getattr(self, name)
            if len(given) != levels:
                raise ValueError(f"{name}: {given} has {len(given)} entries for {levels} block_out_channels")
            if unknown := [kind for kind in given if kind not in kinds]:
                raise ValueError(f"{name}: {unknown} are none of {', '.join(kinds)}")
        if self.layers_per_block < 1:
            raise ValueError(f"layers_per_block: {self.layers_per_block} is less than 1")
        if uneven := [width for width in self.block_out_channels if width % self.norm_num_groups]:
            raise ValueError(f"block_out_channels: {uneven} do not divide by norm_num_groups={self.norm_num_groups}")

    @property
    def divisor(self) -> int:
        """How many times the edge of an image is that of its latents."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderKL(Halves):
    """An autoencoder with normal latents, with the fields of diffusers' AutoencoderKL.

    Stable Diffusion's have widths of (128, 256, 512, 512) and 2 layers a block; 4 latent channels up to XL, 16 and
    neither of the two convolutions around the latents in 3. Images are [B, H, W, in_channels], H and W multiples of
    `divisor`. Raises ValueError as `Halves` does, and where the statistics of the latents do not fit them.
    """

    published: ClassVar[str] = "AutoencoderKL"
    fixed: ClassVar[dict] = {"act_fn": "silu"}

    latent_channels: int = 4
    shift_factor: float | None = None
    """What is taken away from latents before they are scaled."""
    latents_mean: tuple[float, ...] | None = None
    """The same for each channel, instead of `shift_factor`."""
    latents_std: tuple[float, ...] | None = None
    """What each channel is divided by, besides `scaling_factor`."""
    force_upcast: bool = True
    """Whether its activations overflow in float16, so that float32 takes its place."""
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.latents_mean is not None and self.shift_factor is not None:
            raise ValueError(f"latents_mean: {self.latents_mean} beside shift_factor={self.shift_factor}; give one")
        for name in ("latents_mean", "latents_std"):
            given = getattr(self, name)
            if given is not None and len(given) != self.latent_channels:
                raise ValueError(f"{name}: {given} has {len(given)} entries for {self.latent_channels} latent_channels")

    def standardized(self, latents: Array) -> Array:
        """Latents [..., latent_channels] as a diffusion model takes them, of about unit variance."""
        mean, scale = self._statistics(latents)
        return (latents - mean) * scale

    def restored(self, latents: Array) -> Array:
        """The inverse of `standardized`: as `decode` takes them."""
        mean, scale = self._statistics(latents)
        return latents / scale + mean

    def _statistics(self, like: Array) -> tuple[Array, Array]:
        mean = self.shift_factor or 0.0 if self.latents_mean is None else self.latents_mean
        std = 1.0 if self.latents_std is None else self.latents_std
        return jnp.asarray(mean, like.dtype), self.scaling_factor / jnp.asarray(std, like.dtype)

    def module(self, rngs: nnx.Rngs) -> "AutoencoderKLModule":
        """`encode`: images -> Posterior; `decode`: latents -> images; called, it reconstructs images."""
        config = replace(self, compute=self.compute.upcast) if self.force_upcast else self
        return AutoencoderKLModule(config, rngs=rngs)


class Posterior(NamedTuple):
    """A normal distribution of latents for each image."""

    mean: Array
    """[B, h, w, latent_channels]."""
    log_variance: Array
    """[B, h, w, latent_channels], in [-30, 20]."""

    @property
    def mode(self) -> Array:
        """The most probable latents."""
        return self.mean

    def sample(self, key: Key) -> Array:
        """Latents drawn with one key, or with one key an image [B]."""
        shape, dtype = self.mean.shape, self.mean.dtype
        if key.ndim:
            noise = jax.vmap(lambda key: jax.random.normal(key, shape[1:], dtype))(key)
        else:
            noise = jax.random.normal(key, shape, dtype)
        return self.mean + jnp.exp(self.log_variance / 2) * noise

    def kl(self) -> Array:
        """The divergence from it to the standard normal distribution in nats, [B]."""
        terms = jnp.square(self.mean) + jnp.expm1(self.log_variance) - self.log_variance
        return terms.sum(axis=tuple(range(1, terms.ndim))) / 2


def _resnet(config: Halves, channels: int, out: int, rngs: nnx.Rngs) -> ResnetBlock:
    groups = config.norm_num_groups
    return ResnetBlock(channels, out, config.compute, embedding_width=None, groups=groups, eps=EPS, rngs=rngs)


def _attention(config: Halves, channels: int, rngs: nnx.Rngs) -> PixelAttention:
    return PixelAttention(channels, 1, config.compute, groups=config.norm_num_groups, eps=EPS, rngs=rngs)


class Level(nnx.Module):
    """[B, H, W, channels] -> [B, H', W', out]; `resample` ("", "down" or "up") says what comes last."""

    def __init__(
        self,
        config: Halves,
        channels: int,
        out: int,
        depth: int,
        *,
        attention: bool,
        resample: str = "",
        rngs: nnx.Rngs,
    ):
        compute = config.compute
        widths = [channels] + [out] * (depth - 1)
        self.resnets = nnx.List([_resnet(config, width, out, rngs) for width in widths])
        self.attentions = nnx.List([_attention(config, out, rngs) for _ in widths] if attention else [])
        down, up = resample == "down", resample == "up"
        self.downsamplers = nnx.List([Downsample(out, out, compute, padding=0, rngs=rngs)] if down else [])
        self.upsamplers = nnx.List([Upsample(out, out, compute, rngs=rngs)] if up else [])

    def __call__(self, x: Array) -> Array:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            x = self.attentions[i](x) if self.attentions else x
        for layer in (*self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class Middle(nnx.Module):
    """A residual block, attention of all pixels to one another, a residual block."""

    def __init__(self, config: Halves, channels: int, *, rngs: nnx.Rngs):
        self.resnets = nnx.List([_resnet(config, channels, channels, rngs) for _ in range(2)])
        wanted = config.mid_block_add_attention
        self.attentions = nnx.List([_attention(config, channels, rngs)] if wanted else [])

    def __call__(self, x: Array) -> Array:
        first, last = self.resnets
        for block in (first, *self.attentions, last):
            x = block(x)
        return x


class Encoder(nnx.Module):
    """Images [B, H, W, in_channels] -> [B, h, w, out]. Raises ValueError for a size that cannot be halved so often."""

    def __init__(self, config: Halves, out: int, *, rngs: nnx.Rngs):
        widths, depth, last = config.block_out_channels, config.layers_per_block, len(config.block_out_channels) - 1
        self.divisor = config.divisor
        self.conv_in = conv(config.in_channels, widths[0], config.compute, rngs=rngs)
        levels = zip((widths[0], *widths), widths, config.down_block_types, strict=False)
        self.down_blocks = nnx.List(
            Level(config, before, width, depth, attention=DOWN[kind], resample="down" if i < last else "", rngs=rngs)
            for i, (before, width, kind) in enumerate(levels)
        )
        self.mid_block = Middle(config, widths[-1], rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], config.norm_num_groups, EPS)
        self.conv_out = conv(widths[-1], out, config.compute, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        if x.shape[1] % self.divisor or x.shape[2] % self.divisor:
            raise ValueError(f"x: an image of {x.shape[1]}x{x.shape[2]} pixels; multiples of {self.divisor} wanted")
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """[B, h, w, latent_channels] -> images [B, H, W, out_channels]."""

    def __init__(self, config: Halves, latent_channels: int, *, rngs: nnx.Rngs):
        widths = config.block_out_channels[::-1]
        depth, last = config.layers_per_block + 1, len(widths) - 1
        self.conv_in = conv(latent_channels, widths[0], config.compute, rngs=rngs)
        self.mid_block = Middle(config, widths[0], rngs=rngs)
        levels = zip((widths[0], *widths), widths, config.up_block_types, strict=False)
        self.up_blocks = nnx.List(
            Level(config, before, width, depth, attention=UP[kind], resample="up" if i < last else "", rngs=rngs)
            for i, (before, width, kind) in enumerate(levels)
        )
        self.conv_norm_out = GroupNorm(widths[-1], config.norm_num_groups, EPS)
        self.conv_out = conv(widths[-1], config.out_channels, config.compute, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class AutoencoderKLModule(nnx.Module):
    """The network that an `AutoencoderKL` describes."""

    def __init__(self, config: AutoencoderKL, *, rngs: nnx.Rngs):
        channels, compute = config.latent_channels, config.compute
        self.encoder = Encoder(config, 2 * channels, rngs=rngs)
        self.decoder = Decoder(config, channels, rngs=rngs)
        pointwise = lambda width: conv(width, width, compute, size=1, rngs=rngs)
        self.quant_conv = pointwise(2 * channels) if config.use_quant_conv else None
        self.post_quant_conv = pointwise(channels) if config.use_post_quant_conv else None

    def encode(self, x: Array) -> Posterior:
        """The distribution of the latents of images [B, H, W, in_channels] in [-1, 1]."""
        moments = self.encoder(x)
        moments = moments if self.quant_conv is None else self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(x.dtype), 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, latents: Array) -> Array:
        """The images [B, H, W, out_channels] of latents [B, h, w, latent_channels]."""
        x = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        return self.decoder(x).astype(latents.dtype)

    def __call__(self, x: Array) -> Array:
        """Images [B, H, W, in_channels] through the most probable latents and back."""
        return self.decode(self.encode(x).mode)
