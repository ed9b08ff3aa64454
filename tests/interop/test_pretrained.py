"""Networks from folders and into them: what does not fit is named, all of it, and nothing is loaded in part."""

import dataclasses
import json
import pickle
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jdiff.interop import from_pretrained, save_pretrained
from jdiff.models import Compute, DiT, UNet2D, functional
from tests.models.draws import drawn

CONFIG = DiT(num_layers=2, num_attention_heads=2, attention_head_dim=8, num_embeds_ada_norm=3, sample_size=8)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def params():
    return drawn(functional(CONFIG.module))


@pytest.fixture
def folder(params, tmp_path):
    save_pretrained(tmp_path, CONFIG, params)
    return tmp_path


def changed(folder, **fields):
    """Sets fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


def test_what_is_saved_is_loaded(folder, params):
    loaded = from_pretrained(folder, expected=DiT)
    assert loaded.config == CONFIG and loaded.differences == [] and equal(loaded.params, params)
    again = from_pretrained(folder, compute=Compute(remat="full", scan=False), dtype=jnp.bfloat16)
    assert again.config.compute.remat == "full"
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(again.params))


def test_config_json_holds_the_fields_of_diffusers(folder):
    fields = json.loads((folder / "config.json").read_text())
    assert fields["_class_name"] == "DiTTransformer2DModel" and "compute" not in fields
    assert fields["num_layers"] == 2 and fields["norm_type"] == "ada_norm_zero"


def test_every_field_that_does_not_fit_is_named(folder):
    changed(folder, norm_type="ada_norm", num_layers="two", patch_size=0, quantization_config={"bits": 4})
    with pytest.raises(ValueError) as refused:
        from_pretrained(folder)
    for named in (
        "num_layers: 'two' is not a whole number",
        "patch_size: 0 is not from 1 to 1000000",
        "unsupported norm_type='ada_norm' (supported: 'ada_norm_zero')",
        "unsupported quantization_config={'bits': 4} (supported: None)",
    ):
        assert named in str(refused.value)


def test_fields_that_the_class_does_not_read_are_kept_and_listed(folder, caplog, tmp_path):
    """Left-overs of other classes and of training are ignored, as diffusers ignores them, and lost by no one."""
    more = {"decay": 0.9999, "optimization_step": 37000, "use_ema_warmup": False, "colour": ["red"], "dropout": 0.5}
    changed(folder, **more, norm_num_groups=16, sample_size=8.0)
    caplog.set_level("DEBUG", "jdiff")
    loaded = from_pretrained(folder, compute=Compute(scan=False))
    assert "DiTTransformer2DModel does not read colour, decay, dropout, norm_num_groups" in caplog.text
    assert dataclasses.replace(loaded.config, compute=CONFIG.compute) == CONFIG
    save_pretrained(tmp_path / "again", loaded.config, loaded.params)
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == json.loads((folder / "config.json").read_text())


def test_the_class_of_a_config_of_another_release(folder):
    changed(folder, _class_name="Transformer2DModel", cross_attention_dim=None, num_vector_embeds=None)
    assert from_pretrained(folder, expected=DiT).config == CONFIG
    changed(folder, norm_type="ada_norm_single")
    with pytest.raises(ValueError, match=r"is a Transformer2DModel with norm_type='ada_norm_single', which is no DiT"):
        from_pretrained(folder)


def test_another_class_is_refused(folder):
    with pytest.raises(ValueError, match="of class DiTTransformer2DModel, not UNet2DModel"):
        from_pretrained(folder, expected=UNet2D)
    changed(folder, _class_name="StableCascadeUNet")
    with pytest.raises(ValueError, match=r"of class StableCascadeUNet; there are .*DiTTransformer2DModel"):
        from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        from_pretrained(folder)


def test_every_tensor_that_does_not_fit_is_named(folder, params):
    tensors = load_file(folder / WEIGHTS)
    del tensors["proj_out_2.bias"], tensors["transformer_blocks.1.attn1.to_q.weight"]
    tensors["pos_embed.proj.bias"] = np.zeros(3, np.float32)
    tensors["extra.weight"] = np.zeros(2, np.float32)
    tensors["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"] += 1
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError) as refused:
        from_pretrained(folder)
    expected = {
        "missing proj_out_2.bias (16,)",
        "missing transformer_blocks.1.attn1.to_q.weight (16, 16)",
        "wrong shape of pos_embed.proj.bias: (3,) instead of (16,)",
        "not used: extra.weight (2,)",
        "not equal to transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight, whose copies they should "
        "be: transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight",
    }
    assert set(str(refused.value).splitlines()[1:]) == expected
    loaded = from_pretrained(folder, strict=False)
    assert set(loaded.differences) == expected
    start = loaded.network.init(jax.random.key(0))
    np.testing.assert_array_equal(loaded.params["pos_embed"]["proj"]["bias"], start["pos_embed"]["proj"]["bias"])
    kernel = lambda tree: tree["pos_embed"]["proj"]["kernel"]
    np.testing.assert_array_equal(kernel(loaded.params), kernel(params))


def test_damaged_files_are_named(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for content, named in (
        (whole[: len(whole) // 2], WEIGHTS),
        (struct.pack("<Q", 4 * 10**9) + whole[8:], WEIGHTS),
        (b"", WEIGHTS),
    ):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(ValueError, match=named):
            from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(ValueError, match="pickled weights only"):
        from_pretrained(folder)


def test_an_index_that_names_a_missing_file(folder):
    (folder / WEIGHTS).rename(folder / "part.safetensors")
    index = {"weight_map": {"proj_out_2.bias": "gone.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"gone\.safetensors"):
        from_pretrained(folder)


def test_what_is_neither_a_folder_nor_a_repository(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no folder, and no name of a repository"):
        from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_pretrained(tmp_path)


def test_parameters_go_into_their_shardings(folder, params):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def rule(leaf):
        axis = next((i for i, length in enumerate(leaf.shape) if length % 8 == 0), None)
        spec = () if axis is None else (None,) * axis + ("fsdp",)
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    loaded = from_pretrained(folder, shardings=lambda abstract: jax.tree.map(rule, abstract))
    assert equal(loaded.params, params)
    for leaf in jax.tree.leaves(loaded.params):
        assert leaf.sharding == rule(leaf)
    query = loaded.params["transformer_blocks"]["each"]["attn1"]["to_q"]["kernel"]
    assert query.shape == (2, 16, 16) and query.addressable_shards[0].data.shape == (2, 2, 16)


def test_parameters_of_another_network_are_not_saved(folder, params):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    wrong = dataclasses.replace(CONFIG, num_layers=3)
    with pytest.raises(ValueError, match=r"params are not those of .*transformer_blocks/each/attn1/to_q/kernel"):
        save_pretrained(folder, wrong, params)
    with pytest.raises(ValueError, match="more"):
        save_pretrained(folder, CONFIG, params | {"more": jnp.zeros(1)})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
