"""The U-Nets of EDM: published sizes, and what the original computes with weights that a formula gives."""

import dataclasses
import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jdiff.interop import from_pretrained, read_config, save_pretrained
from jdiff.models import DhariwalUNet, SongUNet, build, functional
from tests.models.draws import drawn

CIFAR: dict[str, Any] = {"channel_mult": (2, 2, 2), "augment_dim": 9}
NCSN: dict[str, Any] = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}
# As many as the original has; its NCSN++ has 128 frequencies more, which it does not count and does not train.
COUNTS = {
    "CIFAR-10 DDPM++": (SongUNet(**CIFAR), 55_733_891),
    "CIFAR-10 DDPM++ with classes": (SongUNet(**CIFAR, label_dim=10), 55_735_299),
    "CIFAR-10 NCSN++": (SongUNet(**CIFAR, **NCSN), 56_397_827 + 128),
    "CIFAR-10 NCSN++ with classes": (SongUNet(**CIFAR, **NCSN, label_dim=10), 56_400_643 + 128),
    "FFHQ 64x64 DDPM++": (SongUNet(img_resolution=64, augment_dim=9), 61_805_571),
    "ImageNet 64x64 ADM": (DhariwalUNet(label_dim=1000), 295_899_267),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_number_of_parameters(name):
    config, count = COUNTS[name]
    shapes = jax.eval_shape(functional(config.module).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


SMALL = {"img_resolution": 8, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "channel_mult_emb": 2}
# Class and fields of config.json, a hash of the names and shapes of its tensors, and two pixels of two images; made by
# the original in float64 on 2026-11-25.
ORIGINAL = {
    "ddpmpp": (
        {"_class_name": "SongUNet", "label_dim": 3, "augment_dim": 9, "attn_resolutions": [8]},
        1668443440,
        [[[-0.10433, -0.17026, -0.24617], [-6.49680, -6.21836, -5.84063]],
         [[-0.95037, -1.36865, -1.77527], [6.62558, 5.86487, 4.98514]]],
    ),
    "ncsnpp": (
        {"_class_name": "SongUNet", **NCSN, "attn_resolutions": [4]},
        2094236037,
        [[[0.13006, 0.01641, -0.11060], [13.25075, 12.12816, 10.77338]],
         [[-1.31202, -1.76722, -2.20355], [10.45526, 10.15189, 9.65204]]],
    ),
    "skip": (
        {
            "_class_name": "SongUNet",
            "encoder_type": "skip",
            "decoder_type": "skip",
            "resample_filter": [1, 3, 3, 1],
            "attn_resolutions": [],
        },
        2690099246,
        [[[-0.40685, -0.67005, -0.84135], [-6.73552, -6.12109, -5.24025]],
         [[-1.88538, -2.51028, -2.98212], [9.12981, 8.05325, 6.95964]]],
    ),
    "adm": (
        {
            "_class_name": "DhariwalUNet",
            "model_channels": 64,
            "label_dim": 3,
            "augment_dim": 9,
            "attn_resolutions": [4],
        },
        4225135211,
        [[[-12.87373, 1.82060, 14.69164], [1.71424, 1.17199, -0.51216]],
         [[-8.72763, 0.79528, 9.57205], [2.43099, 1.21750, -1.18570]]],
    ),
}  # fmt: skip


def by_formula(name, array):
    """What a tensor holds: filters what they do; any other at its number n 0.3 sin(0.7 n + a whole number below 1000
    that its name gives), and weights of norms 1 more."""
    if name.endswith("resample_filter"):
        return array
    values = 0.3 * np.sin(0.7 * np.arange(array.size) + zlib.crc32(name.encode()) % 1000)
    return (values + ("norm" in name and name.endswith("weight"))).reshape(array.shape).astype(np.float32)


@pytest.mark.parametrize("name", ORIGINAL)
def test_it_computes_what_the_original_computes(name, tmp_path):
    """From a file in its layout, strictly; tests/interop does not have it, for its licence."""
    fields, hashed, pixels = ORIGINAL[name]
    fields = {**SMALL, "dropout": 0.1, "label_dropout": 0, **fields}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = read_config(tmp_path / "config.json")
    save_pretrained(tmp_path, config, drawn(functional(config.module)))
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    described = sorted(f"{name} {tensor.shape}" for name, tensor in tensors.items())
    assert zlib.crc32("\n".join(described).encode()) == hashed
    save_file({name: by_formula(name, tensor) for name, tensor in tensors.items()}, file)

    loaded = from_pretrained(tmp_path)
    x = jnp.asarray(np.cos(0.9 * np.arange(2 * 8 * 8 * 3)).reshape(2, 8, 8, 3), jnp.float32)
    cond = {"label": jnp.array([1, 3])} if config.label_dim else {}
    cond |= {"augment": jnp.cos(jnp.arange(18.0)).reshape(2, 9)} if config.augment_dim else {}
    y = np.asarray(jax.jit(loaded.network.apply)(loaded.params, x, jnp.array([-1.25, 0.5]), cond))
    np.testing.assert_allclose(y[:, [0, 4], [7, 3]], pixels, atol=2e-5 * np.abs(pixels).max())


LABELLED = SongUNet(
    img_resolution=8,
    model_channels=8,
    channel_mult=(1, 2),
    num_blocks=1,
    channel_mult_emb=2,
    attn_resolutions=(),
    encoder_type="residual",
    label_dim=3,
    augment_dim=2,
)


def test_no_augmentation_is_one_of_zeros_and_no_class_is_another():
    network = functional(LABELLED.module)
    params, x, c = drawn(network), jax.random.normal(jax.random.key(0), (6, 8, 8, 3)), jnp.zeros(6)
    apply, label = jax.jit(network.apply), jnp.array([0, 1, 2, 3, 4, -1])
    plain = apply(params, x, c, {"label": label})
    zeros, ones = (apply(params, x, c, {"label": label, "augment": jnp.full((6, 2), a)}) for a in (0.0, 1.0))
    np.testing.assert_allclose(zeros[:4], plain[:4], atol=1e-6)
    assert (jnp.abs(ones - plain)[:4].max(axis=(1, 2, 3)) > 1e-3).all()
    assert jnp.isnan(plain[4:]).all() and jnp.isfinite(plain[:4]).all()
    other = functional(dataclasses.replace(LABELLED, augment_dim=0).module)
    abstract = jax.eval_shape(other.init, jax.random.key(0))
    with pytest.raises(ValueError, match="augment"):
        jax.eval_shape(other.apply, abstract, x, c, {"label": label, "augment": jnp.zeros((6, 2))})


def test_one_that_is_built_takes_the_noise_label_itself_and_starts_at_zero():
    config = DhariwalUNet(model_channels=64, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    built = build(config, size=4, channels=1, num_classes=2)
    fields = {"img_resolution": 4, "in_channels": 1, "out_channels": 1, "label_dim": 2}
    network, given = (
        functional(dataclasses.replace(config, **fields).module),
        (jnp.array([-1.0]), {"label": jnp.array([2])}),
    )
    params, x, apply = drawn(network), jnp.ones((1, 4, 4, 1)), jax.jit(built.apply)
    y = apply(params, x, *given)
    np.testing.assert_allclose(y, jax.jit(network.apply)(params, x, *given), rtol=1e-5)
    assert jnp.abs(y).max() > 0 and not apply(jax.jit(built.init)(jax.random.key(0)), x, *given).any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SongUNet(img_resolution=12), "img_resolution: 12 is not a positive multiple of 8"),
        (lambda: SongUNet(encoder_type="skipped"), "encoder_type: 'skipped' is not one of"),  # pyright: ignore[reportArgumentType]
        (lambda: SongUNet(resample_filter=(1, 2, 1)), r"resample_filter: \(1, 2, 1\) is not one of"),
        (lambda: DhariwalUNet(model_channels=32), r"model_channels: 32 gives \[96\] channels to attention"),
    ],
)
def test_impossible_configs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
