"""Weights as they lie in folders: variants, shards beside a stale file, 8 bits, no numbers, hostile files."""

import json
import os
import struct
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jdiff.interop import from_pretrained, open_tensors, save_pretrained, save_tensors
from jdiff.models import DiT, functional
from tests.models.draws import drawn

NAME, MODEL = "diffusion_pytorch_model", "model"
OLD, NEW = {"w": np.float32([1])}, {"w": np.float32([2])}
CONFIG = DiT(num_layers=2, num_attention_heads=2, attention_head_dim=8, num_embeds_ada_norm=3, sample_size=8)


def sharded(folder, tensors, name, variant=None, index=None):
    """One shard and its index, as libraries write them."""
    part = f"{name}.{variant}-00001-of-00001" if variant else f"{name}-00001-of-00001"
    save_file(tensors, folder / f"{part}.safetensors")
    places = dict.fromkeys(tensors, f"{part}.safetensors")
    index = index or (f"{name}.safetensors.index.{variant}.json" if variant else f"{name}.safetensors.index.json")
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def value(folder, name=NAME, variant=None):
    with open_tensors(folder, name, variant) as tensors:
        return tensors.read("w").item()


@pytest.mark.parametrize("name, expected", [(NAME, 2), (MODEL, 1)])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_of_shards_and_a_single_file_that_is_read_which_the_library_reads(tmp_path, name, expected, variant):
    """diffusers takes the shards, transformers the single file."""
    sharded(tmp_path, NEW, name, variant)
    assert value(tmp_path, name, variant) == 2
    save_file(OLD, tmp_path / (f"{name}.{variant}.safetensors" if variant else f"{name}.safetensors"))
    assert value(tmp_path, name, variant) == expected


def test_libraries_read_that_which_is_read_here(tmp_path):
    peers = pytest.importorskip("tests.interop.peers")
    stale, fresh = (drawn(functional(CONFIG.module), scale=scale) for scale in (0.1, 1.0))
    save_pretrained(tmp_path, CONFIG, fresh)
    save_tensors(tmp_path, tensors := dict(load_file(tmp_path / f"{NAME}.safetensors")), limit=2000)
    save_pretrained(tmp_path / "stale", CONFIG, stale)
    (tmp_path / "stale" / f"{NAME}.safetensors").rename(tmp_path / f"{NAME}.safetensors")
    theirs = peers.diffusers.DiTTransformer2DModel.from_pretrained(tmp_path).state_dict()["proj_out_2.bias"]
    assert np.array_equal(theirs.numpy(), tensors["proj_out_2.bias"])
    assert np.array_equal(from_pretrained(tmp_path).params["proj_out_2"]["bias"], theirs.numpy())


def test_a_save_over_shards_is_what_is_read(tmp_path):
    for name in (NAME, MODEL):
        save_tensors(tmp_path, OLD | {"x": np.float32([0])}, name, limit=4)
        save_tensors(tmp_path, NEW, name)
        assert value(tmp_path, name) == 2
        save_tensors(tmp_path, OLD | {"x": np.float32([0])}, name, limit=4)
        assert value(tmp_path, name) == 1


def test_an_index_of_a_variant_has_had_several_names(tmp_path):
    for i, index in enumerate(("safetensors.index.fp16.json", "safetensors.fp16.index.json")):
        folder = tmp_path / str(i)
        folder.mkdir()
        sharded(folder, NEW, NAME, "fp16", f"{NAME}.{index}")
        assert value(folder, variant="fp16") == 2


def test_a_folder_of_another_variant_says_how_to_ask(tmp_path):
    save_file(NEW, tmp_path / f"{MODEL}.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors .* holds others, which variant='fp16' reads"):
        value(tmp_path, MODEL)
    save_file(NEW, tmp_path / f"{MODEL}.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no model\.bf16\.saf.*which variant=None or variant='fp16' reads"):
        value(tmp_path, MODEL, "bf16")
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax" / "flax_model.msgpack").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds flax_model\.msgpack \(Flax's\)"):
        value(tmp_path / "flax", MODEL)


def raw(path, header, data=b""):
    """A file of safetensors, by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("dtype, kind", [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)])
def test_tensors_of_8_bits_are_read(tmp_path, dtype, kind):
    values = np.array([[0.5, -2.0, 0.0], [1.0, 3.5, -0.25]], kind)
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header["w"] = {"dtype": dtype, "shape": [2, 3], "data_offsets": [4, 10]}
    raw(tmp_path / f"{NAME}.safetensors", header, np.float32([7]).tobytes() + values.tobytes())
    with open_tensors(tmp_path) as tensors:
        assert tensors.read("w").dtype == kind and tensors.read("a") == 7
        np.testing.assert_array_equal(tensors.read("w").astype(np.float32), values.astype(np.float32))


HOSTILE = {
    "another dtype": (
        {"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}},
        b"\0",
        r"w has dtype F4, which is not read; there are F64",
    ),
    "overlapping": (
        {n: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} for n in "wv"},
        b"\0\0",
        "is not a whole safetensors file",
    ),
    "too long": ({"w": {"dtype": "U8", "shape": [2**60], "data_offsets": [0, 2**60]}}, b"", "is not a whole"),
    "negative": ({"w": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 0]}}, b"", "is not a whole"),
    "no object": ([1], b"", "is not a whole safetensors file"),
    "deep": (b'{"w":' * 100_000, b"", "is not a whole safetensors file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_by_name(case, tmp_path):
    header, data, message = HOSTILE[case]
    path = tmp_path / f"{NAME}.safetensors"
    raw(path, header, data)
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as refused:
        value(tmp_path)
    assert str(path) in str(refused.value)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("name", [f"{NAME}.safetensors", f"{NAME}.safetensors.index.json", "config.json"])
def test_what_is_no_regular_file_is_never_waited_for(make, name, tmp_path):
    save_pretrained(tmp_path, CONFIG, drawn(functional(CONFIG.module)))
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is not a regular file"):
        from_pretrained(tmp_path)


def test_weights_behind_links_are_read(tmp_path):
    """As in the cache of the hub."""
    save_file(NEW, tmp_path / "blob")
    (tmp_path / f"{NAME}.safetensors").symlink_to("blob")
    assert value(tmp_path) == 2


def edited(folder, **tensors):
    path = folder / f"{NAME}.safetensors"
    save_file(load_file(path) | tensors, path)


def test_numbers_that_are_none_are_named(tmp_path):
    save_pretrained(tmp_path, CONFIG, drawn(functional(CONFIG.module)))
    edited(tmp_path, **{"proj_out_2.bias": np.full(16, np.nan, np.float32)})
    spoilt = load_file(tmp_path / f"{NAME}.safetensors")["transformer_blocks.1.attn1.to_q.weight"]
    spoilt[3, 2] = np.inf
    edited(tmp_path, **{"transformer_blocks.1.attn1.to_q.weight": spoilt})
    named = ["not finite: proj_out_2.bias", "not finite: transformer_blocks.1.attn1.to_q.weight"]
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        with pytest.raises(ValueError) as refused:
            from_pretrained(tmp_path, dtype=dtype)
        assert str(refused.value).splitlines()[1:] == named
    assert from_pretrained(tmp_path, strict=False).differences == named


def test_whole_numbers_are_no_weights(tmp_path):
    save_pretrained(tmp_path, CONFIG, drawn(functional(CONFIG.module)))
    edited(tmp_path, **{"proj_out_2.bias": np.zeros(16, np.int8)})
    with pytest.raises(ValueError, match=r"wrong dtype of proj_out_2.bias: I8 instead of one of F64"):
        from_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path, strict=False)
    start = loaded.network.init(jax.random.key(0))
    np.testing.assert_array_equal(loaded.params["proj_out_2"]["bias"], start["proj_out_2"]["bias"])


def test_a_config_of_more_blocks_than_tensors_is_refused_at_once(tmp_path):
    save_pretrained(tmp_path, CONFIG, drawn(functional(CONFIG.module)))
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_layers": 999}))
    with pytest.raises(ValueError, match=r"its config has 999 blocks, and its weights have \d+ tensors"):
        from_pretrained(tmp_path)


PICKLES = {
    "tied": lambda t: {"shared.weight": t, "encoder.embed_tokens.weight": t},
    "beside": lambda t: {"shared.weight": t, "epoch": 3, "args": {"lr": 0.1}},
    "nested": lambda t: {"epoch": 3, "state_dict": {"shared.weight": t.T.contiguous().T}},
    "parallel": lambda t: {"module.shared.weight": t},
    "nested twice": lambda t: {"module": {"module.shared.weight": t}, "step": 1},
}


def test_the_command_of_the_message_makes_weights_of_real_layouts(tmp_path):
    """The very command, in a shell, for each layout at once; a folder's name may hold anything."""
    torch = pytest.importorskip("torch")
    commands = []
    for name, layout in PICKLES.items():
        folder = tmp_path / f'it\'s "{name}" $HOME'
        folder.mkdir()
        torch.save(layout(torch.arange(6.0).reshape(2, 3)), folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pickled weights only \(pytorch_model\.bin\).*torch\.load") as refused:
            value(folder, MODEL)
        commands.append(str(refused.value).partition("trust them: ")[2])
    run = " && ".join(commands).replace("python -c", f"{sys.executable} -c")
    subprocess.run(run, shell=True, check=True, cwd="/", timeout=600)
    for name in PICKLES:
        with open_tensors(tmp_path / f'it\'s "{name}" $HOME', MODEL) as tensors:
            np.testing.assert_array_equal(tensors.read("shared.weight"), np.arange(6.0).reshape(2, 3))


def test_the_shards_of_pickled_weights_are_converted_together(tmp_path):
    for i in (1, 2):
        (tmp_path / f"pytorch_model-0000{i}-of-00002.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"for f in \[.*00001-of-00002\.bin.*00002-of-00002\.bin"):
        value(tmp_path, MODEL)
