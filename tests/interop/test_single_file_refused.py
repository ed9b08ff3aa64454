"""Original files of Stable Diffusion as published, told from shapes alone; what is said of files that do not fit."""

import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jdiff.interop import Entry, Tensors, from_single_file
from jdiff.interop.single_file import family_of, parts_of, renamed
from tests.interop.encoders import BIG_G, SD15_TEXT
from tests.interop.originals import (
    CLIP_1,
    CLIP_2,
    LEFT,
    NETWORK,
    VAE,
    XL,
    autoencoder,
    clip,
    mmdit,
    open_clip,
    tensors_of,
    under,
    unet,
)
from tests.interop.peers import diffusers, torch, transformers
from tests.interop.test_published import SD3, SD15, SD21, SDXL

FULL = {"channel_mult": (1, 2, 4, 4), "model_channels": 320, "num_res_blocks": 2, "depths": (1, 1, 1, 0)}
FULL_XL = FULL | {"channel_mult": (1, 2, 4), "depths": (0, 2, 10)}
FULL_VAE = under(VAE, autoencoder(ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2))
WORDS = {"vocabulary": 49408, "length": 77}
VIT_L = clip(width=768, layers=12, **WORDS)
VIT_H = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "eos_token_id": 2,
}
VIT_H |= {"num_attention_heads": 16, "hidden_act": "gelu", "max_position_embeddings": 77}
# Of each published file: its shapes, and the published configs of the networks that it holds.
PUBLISHED = {
    "Stable Diffusion 1": (
        under(NETWORK, unet(**FULL, context=768, linear=False)) | FULL_VAE | under(CLIP_1, VIT_L),
        {"unet": SD15, "text_encoder": SD15_TEXT},
    ),
    "Stable Diffusion 2": (
        under(NETWORK, unet(**FULL, context=1024, linear=True))
        | FULL_VAE
        | under(CLIP_2, open_clip(width=1024, layers=24, **WORDS)),
        {"unet": SD21, "text_encoder": VIT_H | {"architectures": ["CLIPTextModel"]}},
    ),
    "Stable Diffusion XL": (
        under(NETWORK, unet(**FULL_XL, context=2048, linear=True, adm=2816))
        | FULL_VAE
        | under(XL[0], VIT_L)
        | under(XL[1], open_clip(width=1280, layers=32, **WORDS)),
        {"unet": SDXL, "text_encoder": SD15_TEXT, "text_encoder_2": BIG_G},
    ),
    "Stable Diffusion 3": (
        under(NETWORK, mmdit(width=1536, layers=24, text=4096, pooled=2048, edge=192))
        | under(VAE, autoencoder(ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=16, quantized=False)),
        {"transformer": SD3},
    ),
}


def unread(name):
    raise AssertionError(f"{name} was read")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_published_networks_told_from_shapes_alone(name):
    shapes, published = PUBLISHED[name]
    entries = {key: Entry("F16", shape) for key, shape in (shapes | LEFT).items()}
    family = family_of(entries, name)
    assert family.name == name
    for part, fields in published.items():
        where, config = parts_of(family, entries, name)[part]
        view = renamed(Tensors(entries=entries, read=unread), where, config, set())
        with torch.device("meta"):
            model = theirs(fields)
        told = {key: entry.shape for key, entry in view.entries.items()}
        if type(model).__name__ == "CLIPTextModel":
            told = {key.removeprefix("text_model."): shape for key, shape in told.items()}
        assert told == {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        assert {key: value for key, value in vars(config).items() if fields.get(key, value) != value} == {}


def theirs(fields):
    """The network of published fields."""
    if "architectures" not in fields:
        return getattr(diffusers, fields["_class_name"]).from_config(fields)
    own = {key: value for key, value in fields.items() if key in VIT_H or key == "projection_dim"}
    return getattr(transformers, fields["architectures"][0])(transformers.CLIPTextConfig(**own))


def saved(folder, tensors):
    save_file(tensors, folder / "file.safetensors")
    return folder / "file.safetensors"


UP, DOWN = f"{NETWORK}output_blocks.1.0.in_layers.2", f"{NETWORK}input_blocks.2.0.out_layers.3"
MORE = ("another.network.weight", "betas_of_another_kind", f"{NETWORK}middle_block.1.extra.weight")


def test_all_that_does_not_fit_is_listed_in_one_error_under_the_names_of_the_file(tmp_path):
    tensors = tensors_of("1") | dict.fromkeys(MORE, np.zeros(3, np.float32))
    del tensors[f"{UP}.bias"]
    tensors[f"{DOWN}.weight"] = np.zeros((32, 32, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"file\.safetensors, unet does not fit UNet2DConditionModel") as caught:
        from_single_file(saved(tmp_path, tensors))
    shapes = "(32, 32, 1, 1) instead of (32, 32, 3, 3)"
    assert set(str(caught.value).splitlines()[1:]) == {
        f"missing {UP}.bias (as up_blocks.0.resnets.1.conv1.bias) (64,)",
        f"wrong shape of {DOWN}.weight (as down_blocks.0.resnets.1.conv2.weight): {shapes}",
        f"not used: {MORE[0]} (3,)",
        f"not used: {MORE[1]} (3,)",
        f"not used: {MORE[2]} (as mid_block.attentions.0.extra.weight) (3,)",
    }


def test_what_no_network_uses_is_listed_when_it_may_be_there(tmp_path):
    path = saved(tmp_path, tensors_of("1") | {MORE[0]: np.zeros(3, np.float32)})
    assert [part.differences for part in from_single_file(path, strict=False).values()] == [
        [f"not used: {MORE[0]} (3,)"],
        [],
        [],
    ]


BLOCK = f"{CLIP_2}transformer.resblocks.1.attn.in_proj_weight"


def test_a_fused_tensor_of_another_size_is_named(tmp_path):
    path = saved(tmp_path, tensors_of("2") | {BLOCK: np.zeros((385, 128), np.float32)})
    with pytest.raises(ValueError, match=rf"wrong shape of {re.escape(BLOCK)} \(as text_model.*q_proj"):
        from_single_file(path)


def without(*prefixes):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


REFUSED = {
    "no autoencoder": ("1", without(VAE), r"is Stable Diffusion 1 without its vae: it has no first_stage_model\.\*"),
    "no encoder": (
        "1",
        without("cond_stage"),
        r"of no known family; its tensors are .*; there are Stable Diffusion 1, ",
    ),
    "no network": ("1", without(NETWORK), r"of no known family"),
    "nothing": ("1", lambda tensors: {}, "its tensors are none"),
    "no width": ("1", without(f"{NETWORK}input_blocks.0.0.weight"), r"input_blocks\.0\.0\.weight must say how large"),
    "no block": (
        "1",
        without(f"{NETWORK}input_blocks.4."),
        r"input_blocks: 5 of them, halving at \[3\], are no levels",
    ),
    "narrow": (
        "2",
        lambda tensors: tensors | {f"{CLIP_2}token_embedding.weight": np.zeros((99, 96), np.float32)},
        "width 96 is not a multiple of 64",
    ),
    "refiner": (
        "XL",
        lambda tensors: {name.replace("embedders.1.", "embedders.0."): tensor for name, tensor in tensors.items()},
        "the refiner of Stable Diffusion XL; there are",
    ),
    "ControlNet": (
        "1",
        lambda tensors: tensors | {"control_model.time_embed.0.weight": np.zeros(1, np.float32)},
        "is a ControlNet; there are",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_file_of_a_known_family_is_refused_by_name(case, tmp_path):
    family, change, message = REFUSED[case]
    path = saved(tmp_path, change(tensors_of(family)))
    with pytest.raises(ValueError, match=message) as caught:
        from_single_file(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_cut_or_not_there_is_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(saved(tmp_path, tensors_of("1")).read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a whole safetensors file"):
        from_single_file(path)
    with pytest.raises(FileNotFoundError, match="gone"):
        from_single_file(tmp_path / "gone.safetensors")


def test_a_pickled_file_is_refused_with_the_command_that_converts_it(tmp_path):
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.float16)}
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"old\.ckpt holds pickled weights") as caught:
        from_single_file(tmp_path / "old.ckpt")
    command = str(caught.value).partition("trust them: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, timeout=120)
    converted = load_file(tmp_path / "old.safetensors")
    assert converted.keys() == tensors.keys()
    assert all(np.array_equal(converted[name], tensor.numpy()) for name, tensor in tensors.items())
