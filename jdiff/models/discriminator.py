"""A discriminator of patches (PatchGAN, Isola et al., 1611.07004), which trains autoencoders (VQGAN, 2012.09841).

Convolutions of 4x4, `layers` of them with a stride of 2 and two without; each logit judges the square of pixels that it
sees, 70x70 for three. A logit is positive for what looks real. Losses, of real and of generated examples:

- hinge (1705.02894):                   max(0, 1 - real) + max(0, 1 + fake);              generator: -fake
- non-saturating (GAN, 1406.2661):      -log s(real) - log(1 - s(fake)), s the sigmoid;   generator: -log s(fake)

Batch normalization keeps running statistics and lets the examples of a batch see one another; here it is group
normalization, over all pixels of an example. So a logit depends on the rest of the image by its statistics alone. There
are no blocks: of `Compute`, the dtype alone matters.
"""

from dataclasses import dataclass

import jax
from flax import nnx

from jdiff.models.compute import PLAIN, Compute
from jdiff.models.convolution import GroupNorm
from jdiff.typing import Array

EPS = 1e-5  # of every normalization
WIDEST = 8  # in units of the first layer's width


@dataclass(frozen=True, kw_only=True)
class PatchDiscriminator:
    """A discriminator of images [B, H, W, in_channels]; the defaults are those of VQGAN, which sees 70x70 pixels.

    Raises ValueError for groups that do not divide the channels, and where there is no layer.
    """

    in_channels: int = 3
    channels: int = 64
    """Of the first layer; each further layer doubles it, up to eight times."""
    layers: int = 3
    """Of stride 2."""
    norm_num_groups: int = 32
    compute: Compute = PLAIN

    def __post_init__(self):
        if self.layers < 1:
            raise ValueError(f"layers: {self.layers} is less than 1")
        if 2 * self.channels % self.norm_num_groups:
            raise ValueError(
                f"channels: twice {self.channels} does not divide by norm_num_groups={self.norm_num_groups}"
            )

    @property
    def sees(self) -> int:
        """Edge of the square of pixels that a logit judges."""
        edge = 1 + 3 + 3
        for _ in range(self.layers):
            edge = 2 * edge + 2
        return edge

    @property
    def smallest(self) -> int:
        """Edge of the smallest image that there is a logit for; padding does the rest."""
        return 3 * 2**self.layers

    def module(self, rngs: nnx.Rngs) -> "PatchDiscriminatorModule":
        """Images [B, H, W, in_channels] -> logits [B, h, w, 1]."""
        return PatchDiscriminatorModule(self, rngs=rngs)


class PatchDiscriminatorModule(nnx.Module):
    """The network that a `PatchDiscriminator` describes."""

    def __init__(self, config: PatchDiscriminator, *, rngs: nnx.Rngs):
        widths = [config.channels * min(2**i, WIDEST) for i in range(config.layers + 1)]

        def layer(channels: int, out: int, stride: int, bias: bool) -> nnx.Conv:
            options = {"strides": stride, "padding": 1, "use_bias": bias, "dtype": config.compute.dtype}
            return nnx.Conv(channels, out, (4, 4), **options, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

        self.smallest = config.smallest
        self.conv_in = layer(config.in_channels, widths[0], 2, bias=True)
        strides = [2] * (config.layers - 1) + [1]
        # Without biases, which the normalization takes away again.
        self.convs = nnx.List([layer(widths[i], widths[i + 1], stride, bias=False) for i, stride in enumerate(strides)])
        self.norms = nnx.List([GroupNorm(width, config.norm_num_groups, EPS) for width in widths[1:]])
        self.conv_out = layer(widths[-1], 1, 1, bias=True)

    def __call__(self, x: Array) -> Array:
        if min(x.shape[1:3]) < self.smallest:
            least = f"{self.smallest}x{self.smallest}"
            raise ValueError(f"x: an image of {x.shape[1]}x{x.shape[2]} pixels; at least {least} wanted")
        dtype, rectified = x.dtype, lambda x: jax.nn.leaky_relu(x, 0.2)
        x = rectified(self.conv_in(x))
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = rectified(norm(layer(x)))
        return self.conv_out(x).astype(dtype)


def _mean(losses: Array) -> Array:
    """Of each example, [B, ...] -> [B]."""
    return losses.mean(axis=tuple(range(1, losses.ndim)))


def hinge_discriminator(real: Array, fake: Array) -> Array:
    """The discriminator's hinge loss of an example that is real and one that is not, from logits [B, ...]: [B]."""
    return _mean(jax.nn.relu(1 - real)) + _mean(jax.nn.relu(1 + fake))


def hinge_generator(fake: Array) -> Array:
    """The generator's loss beside it, from logits [B, ...]: [B]."""
    return -_mean(fake)


def non_saturating_discriminator(real: Array, fake: Array) -> Array:
    """The discriminator's cross entropy of an example that is real and one that is not, from logits [B, ...]: [B]."""
    return _mean(jax.nn.softplus(-real)) + _mean(jax.nn.softplus(fake))


def non_saturating_generator(fake: Array) -> Array:
    """The generator's loss beside it, from logits [B, ...]: [B]."""
    return _mean(jax.nn.softplus(-fake))
