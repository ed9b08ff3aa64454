"""Original files of Stable Diffusion as they go round: marks of what they predict, other names, and parts alone."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jdiff.interop import from_single_file
from jdiff.interop.original_files import marked, open_original
from jdiff.pipelines import TextToImage
from tests.interop.originals import CLIP_1, NETWORK, VAE, tensors_of
from tests.text.folders import clip_folder

EMPTY = np.zeros((0,), np.float32)
V, ZERO_SNR = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
MARKS = {
    "none": ({}, {}, {}),
    "v_pred": ({"v_pred": EMPTY}, {}, V),
    "ztsnr": ({"v_pred": EMPTY, "ztsnr": EMPTY}, {}, V | ZERO_SNR),
    "ztsnr alone": ({"ztsnr": EMPTY}, {}, V | ZERO_SNR),
    "modelspec v": ({}, {"modelspec.prediction_type": "v"}, V),
    "modelspec epsilon": ({}, {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}),
    "kohya": ({}, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, V | ZERO_SNR),
    "kohya, no": ({}, {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"}, {}),
    "base": ({}, {"modelspec.architecture": "stable-diffusion-v2-512"}, {"prediction_type": "epsilon"}),
    "base that predicts v": (
        {},
        {"modelspec.architecture": "stable-diffusion-v2-512", "modelspec.prediction_type": "v"},
        V,
    ),
    "steps of 2's base": ({"global_step": np.asarray(875_000)}, {}, {"prediction_type": "epsilon"}),
    "steps": ({"global_step": np.asarray(140_000)}, {}, {}),
}


@pytest.mark.parametrize("case", MARKS)
def test_a_file_says_what_its_network_predicts(case, tmp_path):
    tensors, metadata, expected = MARKS[case]
    save_file({"x": EMPTY} | tensors, tmp_path / "x.safetensors", metadata)
    with open_original(tmp_path / "x.safetensors") as opened:
        assert marked(opened, "x") == expected


def test_a_prediction_that_is_not_known_is_refused(tmp_path):
    save_file({"x": EMPTY}, tmp_path / "x.safetensors", {"modelspec.prediction_type": "flow"})
    with (
        open_original(tmp_path / "x.safetensors") as opened,
        pytest.raises(ValueError, match=r"modelspec.prediction_type='flow' is not v or v_prediction or epsilon"),
    ):
        marked(opened, "x")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The tensors of a file of Stable Diffusion 1, and what is read of it."""
    tensors = tensors_of("1")
    save_file(tensors, path := tmp_path_factory.mktemp("plain") / "1.safetensors")
    return tensors, from_single_file(path)


def renamed(tensors, *pairs):
    """Tensors by other names, of which each pair must change some."""
    for pattern, replacement in pairs:
        changed = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
        assert changed.keys() != tensors.keys() and len(changed) == len(tensors)
        tensors = changed
    return tensors


MIDDLE = r"(first_stage_model\..*attn_1\.)"


def test_files_by_other_names_hold_the_same_networks(plain, tmp_path):
    """A wrapper before all names, encoders without `text_model.`, the autoencoder's attention by later names, marks,
    an averaged copy and counters."""
    tensors, expected = plain
    other = renamed(
        tensors,
        (r"^cond_stage_model\.transformer\.text_model\.", CLIP_1),
        (rf"{MIDDLE}q\.", r"\1to_q."),
        (rf"{MIDDLE}k\.", r"\1key."),
        (rf"{MIDDLE}v\.", r"\1to_v."),
        (rf"{MIDDLE}proj_out\.", r"\1to_out.0."),
    )
    other |= {"v_pred": EMPTY, "ztsnr": EMPTY, "global_step": np.int64(3), "epoch": np.int64(1)}
    other |= {f"{CLIP_1}text_projection.weight": np.zeros((128, 128), np.float32), "model_ema.decay": np.float32(0.9)}
    save_file({f"state_dict.{name}": np.asarray(t) for name, t in other.items()}, tmp_path / "other.safetensors")
    networks = from_single_file(tmp_path / "other.safetensors")
    assert networks.keys() == expected.keys()
    for name, part in networks.items():
        assert part.config == expected[name].config
        assert jax.tree.all(jax.tree.map(np.array_equal, part.params, expected[name].params))


def test_files_of_8_bits_are_read(plain, tmp_path):
    tensors, expected = plain
    halves = {name: t.astype(ml_dtypes.float8_e4m3fn) if name.startswith(NETWORK) else t for name, t in tensors.items()}
    header, data, at = {}, [], 0
    for name, tensor in halves.items():
        kind = {"float8_e4m3fn": "F8_E4M3", "float32": "F32", "int64": "I64"}[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        data.append(np.ascontiguousarray(tensor).tobytes())
        at += tensor.nbytes
    text = json.dumps(header).encode()
    path = tmp_path / "8.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))
    unet = from_single_file(path)["unet"].params["conv_in"]["kernel"]
    exact = np.asarray(expected["unet"].params["conv_in"]["kernel"])
    np.testing.assert_array_equal(unet, exact.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


def test_one_name_twice_and_scales_beside_weights_are_refused(plain, tmp_path):
    tensors, _ = plain
    name = f"{VAE}encoder.mid.attn_1.q.weight"
    save_file(tensors | {name.replace(".q.", ".to_q."): tensors[name]}, path := tmp_path / "twice.safetensors")
    with pytest.raises(ValueError, match=r"holds first_stage_model.encoder.mid.attn_1.q.weight twice"):
        from_single_file(path)
    save_file(tensors | {f"{NETWORK}out.2.scale_weight": np.ones(1, np.float32)}, path)
    with pytest.raises(ValueError, match=r"in 8 bits with scales beside them \(model.diffusion_model.out.2.scale_w"):
        from_single_file(path)


@pytest.mark.parametrize(
    "kept, message",
    [
        ((NETWORK,), "It has U-Net but no autoencoder and no encoders of prompts"),
        ((VAE,), "It has autoencoder but no U-Net and no encoders of prompts"),
        ((NETWORK, VAE), "It has U-Net and autoencoder but no encoders of prompts"),
        ((NETWORK, CLIP_1), "without its vae"),
    ],
)
def test_a_file_of_some_parts_says_which_are_missing(plain, kept, message, tmp_path):
    save_file({n: t for n, t in plain[0].items() if n.startswith(kept)}, path := tmp_path / "parts.safetensors")
    with pytest.raises(ValueError, match=message):
        from_single_file(path)


def test_a_marked_file_draws_by_a_schedule_that_ends_in_noise_alone(plain, tmp_path):
    """Of Stable Diffusion 1, whose published scheduler has no such schedule: DDIM's is taken."""
    save_file(plain[0] | {"v_pred": EMPTY, "ztsnr": EMPTY}, path := tmp_path / "v.safetensors")
    pipeline = TextToImage.from_single_file(path, tokenizer=clip_folder(tmp_path / "tokenizer", limit=16))
    scheduler = pipeline.folder.files["scheduler/scheduler_config.json"]
    expected = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    expected |= {"rescale_betas_zero_snr": True, "clip_sample": False}
    assert {name: scheduler.get(name) for name in expected} == expected
    assert pipeline.folder.files["model_index.json"]["scheduler"] == ["diffusers", "DDIMScheduler"]
