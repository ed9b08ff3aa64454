"""The U-Nets of EDM (2206.00364): DDPM++ and NCSN++ (score_sde, 2011.13456) and ADM (2105.05233).

With c the noise label, f(c) sinusoids or Fourier features of it, y one of the n unit vectors of the classes (zero for
no class) and a what the image was augmented by, the vector that residual blocks see is

    SongUNet:      e = silu(V silu(U (f(c) + L sqrt(n) y + A a)))      added to the features; sums divided by sqrt(2)
    DhariwalUNet:  e = silu(V silu(U (f(c) + A a)) + L y)              scales and shifts them

A level on the way down begins with a block that halves, level 0 with a convolution; on the way up with one that
doubles, the lowest with two blocks. Each further block on the way up takes the last result not yet taken. Besides, in a
SongUNet the image may be halved by itself and added to each level ("skip") or passed on through convolutions
("residual"), and each level may add to a picture that is doubled in between ("skip").

Names of parameters are those of EDM's own code. Initial weights are of this library: the second convolution of a block,
the way out of an attention and the last layer start at zero.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.models.compute import PLAIN, Compute
from jdiff.models.convolution import RESAMPLE, conv, fir_halve, halve
from jdiff.models.functional import Constant
from jdiff.models.layers import ZERO, check_size
from jdiff.models.products import Conv
from jdiff.models.regularize import Regularization, numbered
from jdiff.models.unet_edm_blocks import FILTERS, Block, Kind, Mapping, group_norm
from jdiff.typing import Array, Cond


@dataclass(frozen=True, kw_only=True)
class EDMUNet(abc.ABC):
    """What the two have in common, with the fields of EDM's code. Raises ValueError for what does not fit."""

    # Of training, where an Experiment says them.
    ignored: ClassVar[frozenset] = frozenset({"dropout", "label_dropout"})

    img_resolution: int = 32
    """Edge of the images, a multiple of `divisor`: the levels with attention are those of a resolution."""
    in_channels: int = 3
    out_channels: int = 3
    label_dim: int = 0
    """Classes; 0 for none."""
    augment_dim: int = 0
    """Numbers that say how an image was augmented; 0 for none."""
    model_channels: int
    channel_mult: tuple[int, ...]
    """Width of each level, in units of `model_channels`."""
    channel_mult_emb: int = 4
    num_blocks: int
    """Residual blocks of a level on the way down; one more on the way up."""
    attn_resolutions: tuple[int, ...]
    """Edges of the levels with attention."""
    compute: Compute = PLAIN

    def __post_init__(self):
        if self.img_resolution < 1 or self.img_resolution % self.divisor:
            raise ValueError(f"img_resolution: {self.img_resolution} is not a positive multiple of {self.divisor}")

    @property
    def divisor(self) -> int:
        """What the edge of the images must be a multiple of."""
        return 2 ** (len(self.channel_mult) - 1)

    def at(self, level: int) -> str:
        """What names of parameters call a level."""
        return "x".join([str(self.img_resolution >> level)] * 2)

    @property
    @abc.abstractmethod
    def kind(self) -> Kind:
        """Of its blocks."""

    def width(self, level: int) -> int:
        """Channels of a level."""
        return self.model_channels * self.channel_mult[level]

    @abc.abstractmethod
    def heads(self, width: int) -> int:
        """Of an attention over so many channels."""

    def attends(self, level: int) -> bool:
        """Whether there is attention at a level; it is in the middle anyway."""
        return self.img_resolution >> level in self.attn_resolutions

    def heads_at(self, level: int) -> int:
        """Of the attentions at a level; 0 where there are none."""
        return self.heads(self.width(level)) if self.attends(level) else 0

    def for_images(
        self, *, size: int, channels: int, out_channels: int, num_classes: int
    ) -> Callable[[nnx.Rngs], nnx.Module]:
        """What makes this network for other images and classes."""
        fields = {"in_channels": channels, "out_channels": out_channels, "label_dim": num_classes}
        return dataclasses.replace(self, img_resolution=size, **fields).module

    def module(self, rngs: nnx.Rngs) -> "EDMUNetModule":
        """(x [B, H, W, in_channels], noise label [B], cond) -> [B, H, W, out_channels].

        `cond` holds "label", integers [B], with classes, label_dim meaning none; and may hold "augment" [B,
        augment_dim], which is zero where it does not.
        """
        return EDMUNetModule(self, rngs=rngs)

    def constants(self) -> dict[str, Constant]:
        """The filters, which files hold wherever something is halved or doubled."""
        kind, row = self.kind, np.array(self.kind.resample_filter, np.float32)
        down = ["_down.conv0", "_down.skip"]
        down += {"standard": [], "skip": ["_aux_down"], "residual": ["_aux_residual"]}[kind.encoder]
        up = ["_up.conv0", "_up.skip"] + ["_aux_up"] * (kind.decoder == "skip")
        levels = range(1, len(self.channel_mult))
        names = [f"enc.{self.at(level)}{part}" for level in levels for part in down]
        names += [f"dec.{self.at(level - 1)}{part}" for level in levels for part in up]
        taps = (np.outer(row, row) / row.sum() ** 2)[None, None]
        return {f"{name}.resample_filter": Constant(taps.shape, lambda: taps) for name in names}


@final
@dataclass(frozen=True, kw_only=True)
class SongUNet(EDMUNet):
    """DDPM++ (the defaults) and NCSN++ (embedding_type="fourier", channel_mult_noise=2, encoder_type="residual",
    resample_filter=(1, 3, 3, 1)); on CIFAR-10 with channel_mult=(2, 2, 2)."""

    published: ClassVar[str] = "SongUNet"
    fixed: ClassVar[dict] = {}

    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = 1
    """Width of the embedding, in units of `model_channels`."""
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[int, ...] = (1, 1)
    """Along one axis, of halving and doubling: (1, 1) or (1, 3, 3, 1)."""

    def __post_init__(self):
        super().__post_init__()
        for name, known in (
            ("embedding_type", ("positional", "fourier")),
            ("encoder_type", ("standard", "skip", "residual")),
            ("decoder_type", ("standard", "skip")),
            ("resample_filter", tuple(FILTERS)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {known}")

    @property
    def kind(self) -> Kind:
        return Kind(
            song=True,
            told=self.model_channels * self.channel_mult_noise,
            embedding_width=self.model_channels * self.channel_mult_emb,
            fourier=self.embedding_type == "fourier",
            encoder=self.encoder_type,
            decoder=self.decoder_type,
            resample_filter=self.resample_filter,
            eps=1e-6,
            output_scale=math.sqrt(2),
            compute=self.compute,
        )

    def heads(self, width: int) -> int:
        return 1


@final
@dataclass(frozen=True, kw_only=True)
class DhariwalUNet(EDMUNet):
    """ADM; the defaults are those of ImageNet at 64x64, but for label_dim=1000."""

    published: ClassVar[str] = "DhariwalUNet"
    fixed: ClassVar[dict] = {}

    img_resolution: int = 64
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)

    def __post_init__(self):
        super().__post_init__()
        last = len(self.channel_mult) - 1
        attend = [level for level in range(last + 1) if level == last or self.attends(level)]
        uneven = [self.width(level) for level in attend if self.width(level) % HEAD]
        if uneven:
            raise ValueError(f"model_channels: {self.model_channels} gives {uneven} channels to attention, not {HEAD}s")

    @property
    def kind(self) -> Kind:
        return Kind(
            song=False,
            told=self.model_channels,
            embedding_width=self.model_channels * self.channel_mult_emb,
            eps=1e-5,
            output_scale=1.0,
            compute=self.compute,
        )

    def heads(self, width: int) -> int:
        return width // HEAD


HEAD = 64  # width of a head of a DhariwalUNet


class EDMUNetModule(nnx.Module):
    """The network that a `SongUNet` or a `DhariwalUNet` describes."""

    def __init__(self, config: EDMUNet, *, rngs: nnx.Rngs):
        self.config = config
        self.mapping = Mapping(config.kind, label_dim=config.label_dim, augment_dim=config.augment_dim, rngs=rngs)
        enc, arriving, skips = self._encoder(rngs)
        dec, arriving = self._decoder(arriving, skips, rngs)
        numbered([part.resnet for part in (*enc.values(), *dec.values()) if isinstance(part, Block)])
        self.enc, self.dec = nnx.Dict(enc), nnx.Dict(dec)
        if not config.kind.song:
            self.out_norm = group_norm(arriving, config.kind.eps)
            self.out_conv = self._last(arriving, rngs)

    def _last(self, channels: int, rngs: nnx.Rngs) -> Conv:
        return conv(channels, self.config.out_channels, self.config.compute, kernel_init=ZERO, rngs=rngs)

    def _encoder(self, rngs: nnx.Rngs) -> tuple[dict[str, nnx.Module], int, list[int]]:
        """The way down, the channels that leave it, and those of its results."""
        config, kind, parts, skips = self.config, self.config.kind, {}, []
        image = config.in_channels
        arriving = config.model_channels if kind.song else config.width(0)
        for level in range(len(config.channel_mult)):
            at, width = config.at(level), config.width(level)
            if level == 0:
                parts[f"{at}_conv"] = conv(image, arriving, config.compute, rngs=rngs)
            else:
                parts[f"{at}_down"] = Block(kind, arriving, arriving, resample=kind.resample("down"), rngs=rngs)
                if kind.encoder == "skip":
                    parts[f"{at}_aux_skip"] = conv(image, arriving, config.compute, size=1, rngs=rngs)
                if kind.encoder == "residual":
                    # Zeros lie around the image before the convolution, not between it and the filter.
                    padding, dtype = len(kind.resample_filter) // 2, config.compute.dtype
                    parts[f"{at}_aux_residual"] = Conv(image, arriving, (3, 3), padding=padding, dtype=dtype, rngs=rngs)
                    image = arriving
            skips.append(arriving)
            for i in range(config.num_blocks):
                parts[f"{at}_block{i}"] = Block(kind, arriving, width, heads=config.heads_at(level), rngs=rngs)
                arriving = width
                skips.append(width)
        return parts, arriving, skips

    def _decoder(self, arriving: int, skips: list[int], rngs: nnx.Rngs) -> tuple[dict[str, nnx.Module], int]:
        """The way up and the channels that leave it."""
        config, kind, parts = self.config, self.config.kind, {}
        for level in reversed(range(len(config.channel_mult))):
            at, width = config.at(level), config.width(level)
            if level == len(config.channel_mult) - 1:
                parts[f"{at}_in0"] = Block(kind, arriving, arriving, heads=config.heads(arriving), rngs=rngs)
                parts[f"{at}_in1"] = Block(kind, arriving, arriving, rngs=rngs)
            else:
                parts[f"{at}_up"] = Block(kind, arriving, arriving, resample=kind.resample("up"), rngs=rngs)
            for i in range(config.num_blocks + 1):
                # A SongUNet has one attention a level here, at its end.
                heads = 0 if kind.song and i < config.num_blocks else config.heads_at(level)
                parts[f"{at}_block{i}"] = Block(kind, arriving + skips.pop(), width, heads=heads, rngs=rngs)
                arriving = width
            if kind.song and (level == 0 or kind.decoder == "skip"):
                parts[f"{at}_aux_norm"] = group_norm(width, kind.eps)
                parts[f"{at}_aux_conv"] = self._last(width, rngs)
        return parts, arriving

    def __call__(self, x: Array, noise_label: Array, cond: Cond, regularization: Regularization | None = None) -> Array:
        check_size(x, self.config.divisor)
        embedding = self.mapping(noise_label, cond)
        y, results = self._down(x, embedding, regularization)
        return self._up(y, results, embedding, regularization).astype(x.dtype)

    def _down(self, x: Array, embedding: Array, regularization: Regularization | None) -> tuple[Array, list[Array]]:
        config, kind, results, image = self.config, self.config.kind, [], x
        for level in range(len(config.channel_mult)):
            at = config.at(level)
            if level == 0:
                x = self.enc[f"{at}_conv"](x)
            else:
                x = self.enc[f"{at}_down"](x, embedding, regularization)
                if kind.encoder == "skip":
                    image = RESAMPLE[kind.resample("down")](image)
                    x = x + self.enc[f"{at}_aux_skip"](image)
                if kind.encoder == "residual":
                    image = self.enc[f"{at}_aux_residual"](image)
                    image = halve(image) if kind.resample_filter == (1, 1) else fir_halve(image, padding=0)
                    x = image = (x + image) / kind.output_scale
            results.append(x)
            for i in range(config.num_blocks):
                x = self.enc[f"{at}_block{i}"](x, embedding, regularization)
                results.append(x)
        return x, results

    def _up(self, x: Array, results: list[Array], embedding: Array, regularization: Regularization | None) -> Array:
        config, kind, drawn = self.config, self.config.kind, None
        for level in reversed(range(len(config.channel_mult))):
            at = config.at(level)
            for name in ("in0", "in1") if level == len(config.channel_mult) - 1 else ("up",):
                x = self.dec[f"{at}_{name}"](x, embedding, regularization)
            for i in range(config.num_blocks + 1):
                x = jnp.concatenate([x, results.pop()], axis=-1)
                x = self.dec[f"{at}_block{i}"](x, embedding, regularization)
            if f"{at}_aux_conv" in self.dec:
                more = self.dec[f"{at}_aux_conv"](jax.nn.silu(self.dec[f"{at}_aux_norm"](x)))
                drawn = more if drawn is None else more + RESAMPLE[kind.resample("up")](drawn)
        return self.out_conv(jax.nn.silu(self.out_norm(x))) if drawn is None else drawn
