"""Tensors on disk: what is written is read to the bit, also by PyTorch's reader, and what is damaged is named."""

import json
import os
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from jdiff.interop import open_tensors, save_tensors

TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "conv.bias": np.arange(3, dtype=ml_dtypes.bfloat16),
    "scale": np.float16(0.5).reshape(()),
    "steps": np.arange(5, dtype=np.int64),
}


def everything(folder, name="diffusion_pytorch_model"):
    with open_tensors(folder, name) as tensors:
        assert {key: entry.shape for key, entry in tensors.entries.items()} == {
            key: value.shape for key, value in TENSORS.items()
        }
        return {key: tensors.read(key) for key in tensors.entries}


@pytest.mark.parametrize("limit", [10**9, 100, 10])
def test_tensors_come_back_to_the_bit(tmp_path, limit):
    save_tensors(tmp_path, TENSORS, limit=limit)
    got = everything(tmp_path)
    for key, value in TENSORS.items():
        assert got[key].dtype == value.dtype
        np.testing.assert_array_equal(got[key], value)


def test_shards_are_named_as_diffusers_names_them(tmp_path):
    save_tensors(tmp_path, TENSORS, limit=100)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in TENSORS.values())
    for key, file in index["weight_map"].items():
        np.testing.assert_array_equal(load_file(tmp_path / file)[key], TENSORS[key])


def test_another_save_leaves_nothing_of_the_first(tmp_path):
    save_tensors(tmp_path, TENSORS, limit=10)
    save_tensors(tmp_path, TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["diffusion_pytorch_model.safetensors"]
    everything(tmp_path)


def test_arrays_that_lie_on_several_devices_are_written_whole(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    value = jax.device_put(jnp.arange(16.0).reshape(8, 2), sharding)
    save_tensors(tmp_path, {"w": value})
    with open_tensors(tmp_path) as tensors:
        np.testing.assert_array_equal(tensors.read("w"), value)


def test_a_failed_save_leaves_the_old_files(tmp_path):
    save_tensors(tmp_path, TENSORS)
    with pytest.raises(ValueError, match='dtype "object"'):
        save_tensors(tmp_path, TENSORS | {"wrong": np.array([None])}, limit=100)
    assert [path.name for path in tmp_path.iterdir()] == ["diffusion_pytorch_model.safetensors"]
    everything(tmp_path)


def test_a_save_that_is_stopped_at_its_index_leaves_what_was_there(tmp_path, monkeypatch):
    save_tensors(tmp_path, TENSORS)
    replace = os.replace

    def stopped(source, target):
        if str(target).endswith("index.json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(tmp_path, {key: 0 * value for key, value in TENSORS.items()}, limit=100)
    np.testing.assert_array_equal(everything(tmp_path)["steps"], TENSORS["steps"])


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def claim_four_gigabytes(path):
    path.write_bytes(struct.pack("<Q", 4 << 30) + path.read_bytes()[8:])


DAMAGE = {
    "cut": (cut, "not a whole safetensors file: .*not fully covered"),
    "header": (claim_four_gigabytes, "not a whole safetensors file: .*header too large"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole safetensors file: .*header too small"),
    "text": (lambda path: path.write_text("a page that says 404"), "not a whole safetensors file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("limit", [10**9, 100])
def test_damaged_files_are_named(tmp_path, kind, limit):
    damage, message = DAMAGE[kind]
    save_tensors(tmp_path, TENSORS, limit=limit)
    path = sorted(tmp_path.glob("*.safetensors"))[-1]
    damage(path)
    with pytest.raises(ValueError, match=f"{path.name} is {message}"), open_tensors(tmp_path):
        pass


def edited(change):
    def damage(folder):
        path = folder / "diffusion_pytorch_model.safetensors.index.json"
        index = json.loads(path.read_text())
        path.write_text(change(index["weight_map"]) or json.dumps(index))

    return damage


INDICES = {
    "file": (edited(lambda places: places.update(steps="gone.safetensors")), "files that are not there: gone"),
    "outside": (edited(lambda places: places.update(steps="../x.safetensors")), r"outside its folder: \['\.\./x"),
    "name": (edited(lambda places: places.update(extra=places["steps"])), r"not in them \['extra'\]"),
    "unnamed": (edited(lambda places: places.pop("steps") and None), r"not in the index \['steps'\]"),
    "cut": (edited(lambda places: '{"weight_map": {'), "is not JSON"),
    "other": (edited(lambda places: "[]"), "must hold a JSON object, got a list"),
    "numbers": (edited(lambda places: places.update(steps=3)), "has no weight_map"),
}


@pytest.mark.parametrize("kind", INDICES)
def test_an_index_and_its_files_must_say_the_same(tmp_path, kind):
    damage, message = INDICES[kind]
    save_tensors(tmp_path, TENSORS, limit=100)
    damage(tmp_path)
    with pytest.raises(ValueError, match=rf"model\.safetensors\.index\.json .*{message}"), open_tensors(tmp_path):
        pass


def test_pickled_weights_are_refused_with_what_converts_them(tmp_path):
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"pickled weights only \(diffusion_pytorch_model\.bin\).*torch\.load"):
        open_tensors(tmp_path).__enter__()
    with pytest.raises(FileNotFoundError, match=r"nothing holds no model\.safetensors"):
        open_tensors(tmp_path / "nothing", "model").__enter__()
