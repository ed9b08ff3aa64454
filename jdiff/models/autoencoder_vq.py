"""An autoencoder whose latents are entries of a codebook (VQ-VAE, van den Oord et al., 1711.00937; VQGAN, 2012.09841).

Each latent z is replaced by e, the nearest of the codebook. The gradient passes through as if it had not been
(straight through): z + stop(e - z). The codebook is moved to the latents and the latents to the codebook by (eq. 3)

    |stop(z) - e|^2 + beta |z - stop(e)|^2,      beta = 0.25

as means over the numbers of an example. Weights published with VQGAN were trained with beta on the first term: the
same value, another gradient.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jdiff.models.autoencoder_kl import Decoder, Encoder, Halves
from jdiff.models.convolution import conv
from jdiff.typing import Array

BETA = 0.25


@dataclass(frozen=True, kw_only=True)
class VQModel(Halves):
    """An autoencoder with a codebook, with the fields of diffusers' VQModel.

    Images are [B, H, W, in_channels], H and W multiples of `divisor`. Raises ValueError as `Halves` does.
    """

    published: ClassVar[str] = "VQModel"
    fixed: ClassVar[dict] = {"act_fn": "silu", "norm_type": "group"}

    latent_channels: int = 3
    num_vq_embeddings: int = 256
    """Entries of the codebook."""
    vq_embed_dim: int | None = None
    """Their width; `latent_channels` if None."""
    lookup_from_codebook: bool = False
    """Whether pipelines of diffusers decode indices; here `lookup` does so for any."""
    force_upcast: bool = False
    """Whether its activations overflow in float16, so that float32 takes its place."""

    @property
    def code_width(self) -> int:
        """Of an entry of the codebook."""
        return self.latent_channels if self.vq_embed_dim is None else self.vq_embed_dim

    def standardized(self, latents: Array) -> Array:
        """Latents as a diffusion model takes them, of about unit variance."""
        return latents * self.scaling_factor

    def restored(self, latents: Array) -> Array:
        """The inverse of `standardized`: as `decode` takes them."""
        return latents / self.scaling_factor

    def module(self, rngs: nnx.Rngs) -> "VQModelModule":
        """`encode`: images -> latents; `quantize`: latents -> Quantized; `decode`: latents -> images; `lookup`: indices
        -> latents; called, it reconstructs images."""
        config = replace(self, compute=self.compute.upcast) if self.force_upcast else self
        return VQModelModule(config, rngs=rngs)


class Quantized(NamedTuple):
    """Latents that were replaced by the nearest of the codebook."""

    latents: Array
    """[B, h, w, code_width], with the gradient of what they replace."""
    indices: Array
    """Integers [B, h, w]."""
    loss: Array
    """[B], of the codebook and of commitment to it."""


class Codebook(nnx.Module):
    """Latents [B, h, w, width] -> Quantized."""

    def __init__(self, count: int, width: int, *, rngs: nnx.Rngs):
        around_zero = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1 / count, 1 / count)
        self.embedding = nnx.Embed(count, width, embedding_init=around_zero, rngs=rngs)

    def __call__(self, z: Array) -> Quantized:
        codes, stop = self.embedding.embedding[...], jax.lax.stop_gradient
        # |z - e|^2 without |z|^2, which is the same for every e. In full precision: a rounded product, which is what
        # some accelerators give unless asked, picks other entries.
        products = jnp.einsum("...d,kd->...k", z, codes, precision=jax.lax.Precision.HIGHEST)
        indices = jnp.argmin(jnp.square(codes).sum(axis=-1) - 2 * products, axis=-1)
        nearest = self.embedding(indices)
        apart = lambda a, b: jnp.square(a - b).mean(axis=tuple(range(1, z.ndim)))
        loss = apart(stop(z), nearest) + BETA * apart(z, stop(nearest))
        return Quantized(z + stop(nearest - z), indices, loss)


class VQModelModule(nnx.Module):
    """The network that a `VQModel` describes."""

    def __init__(self, config: VQModel, *, rngs: nnx.Rngs):
        channels, width, compute = config.latent_channels, config.code_width, config.compute
        self.encoder = Encoder(config, channels, rngs=rngs)
        self.quant_conv = conv(channels, width, compute, size=1, rngs=rngs)
        self.quantize = Codebook(config.num_vq_embeddings, width, rngs=rngs)
        self.post_quant_conv = conv(width, channels, compute, size=1, rngs=rngs)
        self.decoder = Decoder(config, channels, rngs=rngs)

    def encode(self, x: Array) -> Array:
        """Latents [B, h, w, code_width] of images [B, H, W, in_channels] in [-1, 1], before they are quantized."""
        return self.quant_conv(self.encoder(x)).astype(x.dtype)

    def decode(self, latents: Array) -> Array:
        """The images [B, H, W, out_channels] of latents [B, h, w, code_width], which are quantized first. To quantize
        twice changes nothing, neither a value nor a gradient."""
        quantized = self.quantize(latents).latents
        return self.decoder(self.post_quant_conv(quantized)).astype(latents.dtype)

    def lookup(self, indices: Array) -> Array:
        """The latents [B, h, w, code_width] of indices [B, h, w]. An index that is too great gives NaN."""
        return self.quantize.embedding(indices)

    def __call__(self, x: Array) -> Array:
        """Images [B, H, W, in_channels] through quantized latents and back."""
        return self.decode(self.encode(x))
