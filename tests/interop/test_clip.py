"""CLIP's encoders beside transformers' CLIPTextModel, CLIPTextModelWithProjection and CLIPVisionModelWithProjection."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jdiff.interop import from_pretrained, read_config, save_pretrained
from jdiff.models import CLIPText, CLIPTextWithProjection, CLIPVisionWithProjection, Compute, functional
from jdiff.models.compute import PLAIN
from tests.interop.encoders import BIG_G, GENERIC, SD15_TEXT, VIT_L, parameters, side_by_side, with_entry, written
from tests.interop.peers import agree, apart, drawn, images, torch, transformers

SMALL = {"vocab_size": 40, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3}
TEXTS = {
    "old_end": SMALL | {"num_attention_heads": 3, "max_position_embeddings": 9, "eos_token_id": 2},
    "gelu": {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 11,
        "hidden_act": "gelu",
        "projection_dim": 6,
        "eos_token_id": 7,
    },
    "one_layer": SMALL | {"num_hidden_layers": 1, "num_attention_heads": 1, "layer_norm_eps": 1e-2, "eos_token_id": 39},
}
VISIONS = {
    "quick": {
        "hidden_size": 12,
        "intermediate_size": 20,
        "projection_dim": 5,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 12,
        "patch_size": 4,
    },
    "gelu": {
        "hidden_size": 8,
        "intermediate_size": 12,
        "projection_dim": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "num_channels": 1,
        "image_size": 8,
        "patch_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-2,
    },
    "patches_that_do_not_fill": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 11,
        "patch_size": 3,
    },
}
TABLE = ("text_model", "embeddings", "token_embedding", "embedding")
# The end token of "gelu" twice: the first of them counts. 39 is the greatest id of the small vocabularies.
IDS = np.array([[5, 9, 11, 7, 7, 7], [3, 39, 4, 2, 7, 1], [8, 8, 2, 39, 1, 7]])


def text_outputs(model, ids=IDS):
    out = model(torch.tensor(ids), output_hidden_states=True)
    if hasattr(out, "text_embeds"):
        return out.last_hidden_state, torch.stack(out.hidden_states), out.text_embeds
    return out.last_hidden_state, torch.stack(out.hidden_states), out.pooler_output


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_prompts_are_encoded_as_by_transformers(name, project, tmp_path):
    kind = transformers.CLIPTextModelWithProjection if project else transformers.CLIPTextModel
    model = drawn(kind(transformers.CLIPTextConfig(**TEXTS[name])), scale=0.3)
    table = model.get_input_embeddings().weight.detach().numpy()
    prefix = "text_model." if project else ""

    def outputs(network, params, x):
        out = network.apply(with_entry(params, TABLE, x), jnp.asarray(IDS))
        return out.last_hidden_state, out.hidden_states, out.text_embeds if project else out.pooled

    theirs, ours = side_by_side(model, text_outputs, f"{prefix}embeddings.token_embedding.weight", outputs)
    loaded = agree(model, theirs, ours, table, tmp_path, axes=(torch.tensor, lambda y: y.detach().numpy()))
    out = jax.jit(loaded.network.apply)(loaded.params, jnp.asarray(IDS))
    assert (out.text_embeds is not None) == project
    if project:
        pooled = model.text_model(torch.tensor(IDS)).pooler_output
        np.testing.assert_allclose(out.pooled, pooled.detach().numpy(), rtol=2e-5, atol=2e-5)


def test_an_earlier_hidden_state_can_be_normalized(tmp_path):
    """As Stable Diffusion does when it skips the last layers."""
    model = drawn(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXTS["old_end"])))
    model.save_pretrained(tmp_path)
    _, network, params, _ = from_pretrained(tmp_path)
    hidden = jax.jit(network.apply)(params, jnp.asarray(IDS)).hidden_states
    theirs = model.final_layer_norm(model(torch.tensor(IDS), output_hidden_states=True).hidden_states[-2])
    ours = network.apply(params, hidden[-2], method="normalized")
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", VISIONS)
def test_pictures_are_encoded_as_by_transformers(name, tmp_path):
    model = drawn(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISIONS[name])), scale=0.3)

    def outputs(model, x):
        out = model(x, output_hidden_states=True)
        return out.last_hidden_state, torch.stack(out.hidden_states), out.image_embeds, model.vision_model(x)[1]

    def our_outputs(network, params, x):
        out = network.apply(params, x)
        return out.last_hidden_state, out.hidden_states, out.image_embeds, out.pooled

    size, channels = model.config.image_size, model.config.num_channels
    x = images(2, size, size, channels)
    theirs, ours = side_by_side(model, outputs, None, our_outputs, x)
    agree(model, theirs, ours, x, tmp_path, axes=(into_images, out_of_images))


def into_images(x):
    x = torch.tensor(np.ascontiguousarray(x))
    return x.permute(0, 3, 1, 2).detach() if x.ndim == 4 else x


def out_of_images(y):
    y = y.detach().numpy()
    return np.moveaxis(y, 1, -1) if y.ndim == 4 else y


@pytest.mark.parametrize("compute", [Compute(scan=False), Compute(remat="full"), Compute(dtype="bfloat16")], ids=str)
def test_how_it_computes_changes_little(compute):
    config = CLIPTextWithProjection(**TEXTS["gelu"])
    params = functional(config.module).init(jax.random.key(0))

    def result(compute):
        network = functional(dataclasses.replace(config, compute=compute).module)
        loss = lambda params: jnp.square(network.apply(params, jnp.asarray(IDS)).text_embeds).sum()
        slope = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
        return jax.jit(network.apply)(params, jnp.asarray(IDS)), np.concatenate([leaf.ravel() for leaf in slope])

    (plain, slope), (other, other_slope) = result(PLAIN), result(compute)
    assert all(leaf.dtype == compute.dtype for leaf in other)
    narrow = compute.dtype == "bfloat16"
    for one, two in zip(plain, other, strict=True):
        assert apart(two.astype(np.float32), np.asarray(one)) < (5e-2 if narrow else 1e-5)
    assert narrow or apart(other_slope, slope) < 1e-5


def test_parameters_of_the_published_encoders():
    text = transformers.CLIPTextConfig(**VIT_L["text_config"])
    vision = transformers.CLIPVisionConfig(**VIT_L["vision_config"])
    big_g = transformers.CLIPTextConfig(**BIG_G)
    assert parameters(CLIPText, SD15_TEXT) == parameters(transformers.CLIPTextModel, text) == 123_060_480
    assert parameters(CLIPTextWithProjection, BIG_G) == 694_659_840
    assert parameters(transformers.CLIPTextModelWithProjection, big_g) == 694_659_840
    ours = parameters(CLIPVisionWithProjection, VIT_L["vision_config"])
    assert ours == parameters(transformers.CLIPVisionModelWithProjection, vision)


def test_published_configs_are_read(tmp_path):
    """As they lie on the hub, with all that releases of transformers wrote into them."""
    expected = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    expected |= {"projection_dim": 768, "eos_token_id": 2}
    assert read_config(written(tmp_path, SD15_TEXT)) == CLIPText(**expected)
    big_g = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
    big_g |= {"projection_dim": 1280, "hidden_act": "gelu", "eos_token_id": 2}
    assert read_config(written(tmp_path, BIG_G)) == CLIPTextWithProjection(**big_g)
    assert read_config(written(tmp_path, VIT_L), CLIPText) == CLIPText(**expected)
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    vision |= {"patch_size": 14, "projection_dim": 768}
    assert read_config(written(tmp_path, VIT_L), CLIPVisionWithProjection) == CLIPVisionWithProjection(**vision)
    with pytest.raises(ValueError, match="of class CLIPModel"):
        read_config(written(tmp_path, VIT_L))


@pytest.mark.parametrize("field, value", [("quantization_config", {}), ("hidden_act", "tanh"), ("is_decoder", True)])
def test_a_field_that_would_change_the_output_is_refused(field, value, tmp_path):
    with pytest.raises(ValueError, match=field):
        read_config(written(tmp_path, SD15_TEXT | {field: value}))


def test_no_field_of_the_networks_is_ignored():
    """Each field that transformers' config classes have, and older releases' generic ones do not, is read or refused,
    but those that say how weights were drawn, what is dropped, and which ids begin and pad."""
    for kind, config in (
        (CLIPText, transformers.CLIPTextConfig),
        (CLIPVisionWithProjection, transformers.CLIPVisionConfig),
    ):
        own = {field.name for field in dataclasses.fields(config)} - GENERIC.keys()
        own -= {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
        assert own & kind.ignored == {"initializer_factor", "initializer_range", "attention_dropout"} | (
            own & {"bos_token_id", "pad_token_id"}
        )


def saved(config, folder):
    params = functional(config.module).init(jax.random.key(0))
    save_pretrained(folder, config, params)
    return params, load_file(folder / "model.safetensors")


def equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_files_of_older_and_newer_releases_are_read(tmp_path):
    """Older ones list the positions; newer ones leave the prefix of CLIPTextModel out."""
    params, tensors = saved(CLIPText(**TEXTS["old_end"]), tmp_path)
    positions = {"text_model.embeddings.position_ids": np.arange(9)[None]}
    save_file(tensors | positions, tmp_path / "model.safetensors")
    assert equal(from_pretrained(tmp_path).params, params)
    save_file({key.removeprefix("text_model."): t for key, t in tensors.items()}, tmp_path / "model.safetensors")
    assert equal(from_pretrained(tmp_path).params, params)


def test_what_the_network_does_not_use_is_refused(tmp_path):
    _, tensors = saved(CLIPText(**TEXTS["old_end"]), tmp_path)
    save_file(tensors | {"text_extra.weight": np.zeros((12, 12))}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"not used: text_extra.weight \(12, 12\)"):
        from_pretrained(tmp_path)
    save_file(tensors | {"text_projection.weight": np.zeros((12, 12))}, tmp_path / "model.safetensors")
    assert from_pretrained(tmp_path).differences == []  # of the class with a projection


def test_an_encoder_is_read_out_of_a_whole_clip(tmp_path):
    text = TEXTS["gelu"] | {"projection_dim": 6}
    whole = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=text, vision_config=VISIONS["quick"] | {"projection_dim": 6}, projection_dim=6
        )
    )
    whole = drawn(whole)
    whole.save_pretrained(tmp_path)
    whole_text = from_pretrained(tmp_path, expected=CLIPTextWithProjection)
    _, network, params, _ = whole_text
    theirs = whole.get_text_features(torch.tensor(IDS)).pooler_output.detach().numpy()
    np.testing.assert_allclose(network.apply(params, jnp.asarray(IDS)).text_embeds, theirs, rtol=1e-4, atol=1e-5)
    _, network, params, _ = from_pretrained(tmp_path, expected=CLIPVisionWithProjection)
    x = images(2, 12, 12, 3)
    theirs = whole.get_image_features(into_images(x)).pooler_output.detach().numpy()
    np.testing.assert_allclose(network.apply(params, x).image_embeds, theirs, rtol=1e-4, atol=1e-5)
    entries = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(entries | {"architectures": ["CLIPTextModel"]}))
    one = from_pretrained(tmp_path, expected=CLIPText)
    assert equal(one.params["text_model"], whole_text.params["text_model"])


@pytest.mark.parametrize("ids", [np.zeros((2, 10), int), np.zeros(5, int), np.zeros((2, 5))], ids=str)
def test_wrong_ids_are_refused(ids):
    network = functional(CLIPText(**TEXTS["old_end"]).module)
    params = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(ValueError, match="ids: "):
        jax.eval_shape(network.apply, params, ids)


def test_wrong_pictures_and_configs_are_refused():
    network = functional(CLIPVisionWithProjection(**VISIONS["quick"]).module)
    params = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"pixels: \(2, 12, 8, 3\) instead of \[B, 12, 12, 3\]"):
        jax.eval_shape(network.apply, params, images(2, 12, 8, 3))
    with pytest.raises(ValueError, match="hidden_size: 512 is not a multiple of num_attention_heads=7"):
        CLIPText(num_attention_heads=7)
    with pytest.raises(ValueError, match="image_size: "):
        CLIPVisionWithProjection(image_size=(224, 224))
    with pytest.raises(ValueError, match="eos_token_id: "):
        CLIPText(eos_token_id=(1, 2))


def test_an_id_that_is_too_great_gives_nan():
    network = functional(CLIPText(**TEXTS["old_end"]).module)
    out = jax.jit(network.apply)(network.init(jax.random.key(0)), jnp.array([[1, 40, 2]]))
    assert jnp.isnan(out.last_hidden_state[0, 1:]).all()
