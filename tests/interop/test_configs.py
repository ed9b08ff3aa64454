"""config.json of diffusers and transformers: every field of their classes is accounted for, published files are read
and come back as they were, and hostile ones are refused at once."""

import dataclasses
import inspect
import json
import os
import time
from pathlib import Path

import pytest

from jdiff.interop import read_config
from jdiff.interop.configs import CLASSES, alternatives, published_fields, replaced, write_config
from jdiff.models import CONFIGS, AutoencoderKL, CLIPText, Compute, DiT, T5Encoder, UNet2DCondition
from tests.interop.test_published import DIT, SD15, SDXL

PUBLISHED = Path(__file__).parents[2] / "../shared/published"
WITH_PEERS = [config for config in CONFIGS if config.published not in ("SongUNet", "DhariwalUNet")]


def theirs(config):
    """The defaults of the fields of a class of diffusers or transformers."""
    peers = pytest.importorskip("tests.interop.peers")
    kind = getattr(peers.diffusers, config.published, None) or getattr(peers.transformers, config.published)
    kind = getattr(kind, "config_class", None) or kind
    parameters = inspect.signature(kind.__init__).parameters
    return {name: p.default for name, p in parameters.items() if name not in ("self", "kwargs")}


@pytest.mark.parametrize("config", WITH_PEERS, ids=lambda config: config.published)
def test_every_field_of_their_class_is_read_or_refused_or_changes_nothing(config):
    """And each default of ours is theirs."""
    plain = lambda value: tuple(value) if isinstance(value, list) else value
    expected = {name: plain(value) for name, value in theirs(config).items()}
    ours = {field.name: field.default for field in published_fields(config)}
    ours |= {name: alternatives(value)[0] for name, value in config.fixed.items()}
    unread = expected.keys() - ours.keys() - set(getattr(config, "derived", ()))
    assert unread <= set(getattr(config, "ignored", ()))
    same = ours.keys() & expected.keys()
    assert {name: ours[name] for name in same} == {name: expected[name] for name in same}


def written(folder, fields):
    path = folder / "config.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return path


# What published files of known classes say besides, and what became of those fields.
MORE = {
    "EMA of a trainer, diffusers/stable-diffusion-xl-1.0-inpainting-0.1": (
        SDXL | {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 37000, "in_channels": 9}
    ),
    "SimianLuo/LCM_Dreamshaper_v7": SD15 | {"time_cond_proj_dim": 256, "cross_attention_norm": None},
    "stabilityai/stable-diffusion-x4-upscaler": SD15
    | {"only_cross_attention": [True, True, True, False], "num_class_embeds": 1000, "upcast_attention": True},
    "Kwai-Kolors/Kolors": SDXL | {"encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"},
    "lemonaddie/Geowizard": SD15
    | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10, "num_class_embeds": None},
    "cvssp/audioldm-s-full-v2": SD15
    | {
        "class_embed_type": "simple_projection",
        "class_embeddings_concat": True,
        "projection_class_embeddings_input_dim": 512,
        "cross_attention_dim": [320, 640, 1280, 1280],
    },
    "facebook/DiT-XL-2-512": DIT
    | {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None, "sample_size": 64},
    "a network that is not square": SD15 | {"sample_size": [64, 96], "dropout": 0.1, "resnet_skip_time_act": True},
}


def unlike(again, fields):
    """The fields that did not come back."""
    names = [name for name in fields if not name.startswith("_") and name not in ("architectures", "model_type")]
    return {name: (fields[name], again.get(name, "absent")) for name in names if again.get(name, "x") != fields[name]}


@pytest.mark.parametrize("name", MORE)
def test_fields_come_back_as_they_were(name, tmp_path):
    config = read_config(written(tmp_path, MORE[name]))
    write_config(tmp_path / "again.json", replaced(config, compute=Compute(scan=False)))
    assert unlike(json.loads((tmp_path / "again.json").read_text()), MORE[name]) == {}


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not beside this checkout")
def test_published_files_are_read_and_come_back(tmp_path):
    """All of those whose class there is; with the reason, those that are not. diffusers reads what is written."""
    refused, count = {}, 0
    for path in sorted(PUBLISHED.rglob("*.json")):
        try:
            fields = json.loads(path.read_text())
            name = fields.get("_class_name") or (fields.get("architectures") or [None])[0]
        except (ValueError, AttributeError):
            continue
        if not isinstance(name, str) or CLASSES.get(name, name) not in {config.published for config in CONFIGS}:
            continue
        count += 1
        try:
            config = read_config(path)
        except ValueError as error:
            refused[path.relative_to(PUBLISHED).as_posix()] = str(error)
            continue
        write_config(tmp_path / "config.json", config)
        assert unlike(json.loads((tmp_path / "config.json").read_text()), fields) == {}, path
        assert read_config(tmp_path / "config.json") == config
    assert count > 300 and len(refused) < 10
    reasons = ("quantization_config", "norm_type='spatial'", "SpatialDownBlock3D", "norm_type='ada_norm_single'")
    assert not {path: why for path, why in refused.items() if not any(reason in why for reason in reasons)}


def test_diffusers_reads_what_was_read_here(tmp_path):
    peers = pytest.importorskip("tests.interop.peers")
    for fields in (MORE["stabilityai/stable-diffusion-x4-upscaler"], MORE["cvssp/audioldm-s-full-v2"]):
        write_config(tmp_path / "config.json", read_config(written(tmp_path, fields)))
        kind = peers.diffusers.UNet2DConditionModel
        with peers.torch.device("meta"):
            model = kind.from_config(kind.load_config(tmp_path))
        assert unlike({k: list(v) if isinstance(v, tuple) else v for k, v in model.config.items()}, fields) == {}


HOSTILE = {
    "list": ("[]", "must hold a JSON object, got a list"),
    "null": ("null", "must hold a JSON object, got null"),
    "deep": ("[" * 10**5, "nested too deeply"),
    "number": ('{"_class_name": ' + "9" * 5000 + "}", "is not readable"),
    "class": ({"_class_name": ["a", "b"]}, r"_class_name or architectures must name one class, got \['a', 'b'\]"),
    "no class": ({}, "must name one class, got None"),
    "architectures": ({"architectures": {"a": 1}}, "must name one class, got {'a': 1}"),
    "sections": ({"architectures": ["CLIPModel"], "text_config": 3}, "text_config must be an object"),
}
VALUES = {
    "num_layers": ("two", -1, 0, 1.5, None, True, 10**9, 1e9, [2], {}, float("nan"), float("inf")),
    "patch_size": (0, None, "2", 10**12),
    "attention_bias": (1, "yes", None),
    "norm_eps": ("small", float("nan"), float("inf"), -1e-5, 10**400, [1]),
    "norm_type": (None, 3, ["ada_norm_zero"]),
    "out_channels": (0, "8", -4, []),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_config_is_refused(case, tmp_path):
    fields, message = HOSTILE[case]
    expected = CLIPText if case == "sections" else None
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as refused:
        read_config(written(tmp_path, fields), expected)
    assert str(tmp_path / "config.json") in str(refused.value) and time.monotonic() - start < 5


@pytest.mark.parametrize("name", VALUES)
def test_values_of_a_wrong_type_or_size_are_named(name, tmp_path):
    for value in VALUES[name]:
        with pytest.raises(ValueError, match=f"{name}[:=]") as refused:
            read_config(written(tmp_path, DIT | {name: value}))
        assert len(str(refused.value)) < 500


def test_lists_of_a_wrong_length_or_content_are_named(tmp_path):
    for name, value in (
        ("block_out_channels", []),
        ("block_out_channels", [320] * 10**5),
        ("block_out_channels", [320, "640", 1280, 1280]),
        ("block_out_channels", [320, -1, 1280, 1280]),
        ("layers_per_block", 10**7),
        ("layers_per_block", [2, 2]),
        ("sample_size", [64, 64, 64]),
        ("down_block_types", "DownBlock2D"),
        ("only_cross_attention", [1, 0, 0, 0]),
        ("downsample_padding", 2),
        ("conv_in_kernel", 4),
        ("class_embed_type", "projection"),
        ("encoder_hid_dim_type", "image_proj"),
        ("dual_cross_attention", True),
        ("time_embedding_type", "fourier"),
    ):
        with pytest.raises(ValueError, match=name):
            read_config(written(tmp_path, SD15 | {name: value}))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_config_that_is_no_regular_file_is_never_waited_for(make, tmp_path):
    make(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is not a regular file"):
        read_config(tmp_path / "config.json")


def test_a_class_that_another_library_part_or_release_names(tmp_path):
    flax = written(tmp_path, SD15 | {"_class_name": "FlaxUNet2DConditionModel"})
    assert isinstance(read_config(flax, UNet2DCondition), UNet2DCondition)
    t5 = written(tmp_path, {"architectures": ["T5ForConditionalGeneration"], "d_model": 8, "dense_act_fn": "relu"})
    assert read_config(t5, T5Encoder) == T5Encoder(d_model=8)
    sibling = written(tmp_path, {"architectures": ["CLIPTextModelWithProjection"], "hidden_size": 64})
    assert read_config(sibling, CLIPText) == CLIPText(hidden_size=64)
    with pytest.raises(ValueError, match="is of class CLIPTextModelWithProjection, not AutoencoderKL"):
        read_config(sibling, AutoencoderKL)


def test_what_is_remembered_makes_no_difference(tmp_path):
    one = read_config(written(tmp_path, DIT | {"colour": "red"}))
    two = read_config(written(tmp_path, DIT | {"colour": "blue"}))
    assert one == two and hash(one) == hash(two) and isinstance(one, DiT)
    assert dataclasses.asdict(one) == dataclasses.asdict(two)
