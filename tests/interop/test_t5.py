"""T5's encoder beside transformers' T5EncoderModel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jdiff.interop import from_pretrained, read_config, save_pretrained
from jdiff.models import Compute, T5Encoder, functional
from jdiff.models.compute import PLAIN
from jdiff.models.t5 import buckets
from tests.interop.encoders import T5_XXL, parameters, side_by_side, with_entry, written
from tests.interop.peers import agree, apart, drawn, torch, transformers

CONFIGS = {
    "original": {"vocab_size": 30, "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 3, "num_heads": 2},
    "gated": {
        "vocab_size": 40,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 6,
    },
    "gated_silu": {
        "vocab_size": 25,
        "d_model": 8,
        "d_kv": 3,
        "d_ff": 8,
        "num_layers": 1,
        "num_heads": 3,
        "feed_forward_proj": "gated-silu",
        "layer_norm_epsilon": 1e-2,
    },
}
RNG = np.random.default_rng(0)
IDS = RNG.integers(25, size=(3, 11))
MASK = np.arange(11) < np.array([[11], [4], [8]])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_prompts_are_encoded_as_by_transformers(name, masked, tmp_path):
    model = drawn(transformers.T5EncoderModel(transformers.T5Config(**CONFIGS[name])), scale=0.2)

    def outputs(model):
        mask = torch.tensor(MASK) if masked else None
        return (model(input_ids=torch.tensor(IDS), attention_mask=mask).last_hidden_state,)

    def our_outputs(network, params, x):
        mask = (jnp.asarray(MASK),) if masked else ()
        return (network.apply(with_entry(params, ("shared", "embedding"), x), jnp.asarray(IDS), *mask),)

    theirs, ours = side_by_side(model, outputs, "shared.weight", our_outputs)
    table = model.shared.weight.detach().numpy()
    agree(model, theirs, ours, table, tmp_path, axes=(torch.tensor, lambda y: y.detach().numpy()))


@pytest.mark.parametrize("count, distance", [(32, 128), (8, 6), (4, 2), (64, 200), (30, 100)])
def test_distances_share_buckets_as_in_transformers(count, distance):
    """At every distance up to 700, and so at every edge, where a logarithm is rounded."""
    config = T5Encoder(relative_attention_num_buckets=count, relative_attention_max_distance=distance)
    n = 700
    apart = torch.arange(n)[None] - torch.arange(n)[:, None]
    kind = transformers.models.t5.modeling_t5.T5Attention
    theirs = kind._relative_position_bucket(apart, num_buckets=count, max_distance=distance)
    np.testing.assert_array_equal(buckets(n, config), theirs)


def test_what_is_masked_changes_nothing():
    network = functional(T5Encoder(**CONFIGS["gated"]).module)
    params = network.init(jax.random.key(0))
    other = np.where(MASK, IDS, 3)
    one, two = (jax.jit(network.apply)(params, jnp.asarray(ids), jnp.asarray(MASK)) for ids in (IDS, other))
    assert np.array_equal(one[MASK], two[MASK])
    assert not np.array_equal(IDS, other)


@pytest.mark.parametrize(
    "compute",
    [Compute(scan=False), Compute(remat="full"), Compute(dtype="bfloat16"), Compute(dtype="float16")],
    ids=str,
)
def test_how_it_computes_changes_little(compute):
    config = T5Encoder(**CONFIGS["gated"])
    params = functional(config.module).init(jax.random.key(0))

    def result(compute):
        network = functional(dataclasses.replace(config, compute=compute).module)
        return jax.jit(network.apply)(params, jnp.asarray(IDS), jnp.asarray(MASK))

    other = result(compute)
    assert other.dtype == compute.upcast.dtype
    narrow = compute.dtype == "bfloat16"
    assert apart(other.astype(np.float32), np.asarray(result(PLAIN))) < (3e-2 if narrow else 1e-5)


def test_parameters_of_the_published_encoder():
    theirs = parameters(transformers.T5EncoderModel, transformers.T5Config(**T5_XXL))
    assert parameters(T5Encoder, T5_XXL) == theirs == 4_762_310_656


def test_the_published_config_is_read(tmp_path):
    """As it lies on the hub, with all that releases of transformers wrote into it."""
    fields = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
    assert read_config(written(tmp_path, T5_XXL)) == T5Encoder(**fields)
    small = {"architectures": ["T5EncoderModel"], "n_positions": 512, "task_specific_params": {"summarization": {}}}
    assert read_config(written(tmp_path, small)) == T5Encoder()


@pytest.mark.parametrize(
    "field, value",
    [("dense_act_fn", "relu"), ("is_gated_act", False), ("quantization_config", 4), ("is_decoder", True)],
)
def test_a_field_that_would_change_the_output_is_refused(field, value, tmp_path):
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        read_config(written(tmp_path, T5_XXL | {field: value}))


def test_impossible_configs_are_refused():
    with pytest.raises(ValueError, match="feed_forward_proj: 'gated' is not one of gelu"):
        T5Encoder(feed_forward_proj="gated")
    with pytest.raises(ValueError, match="relative_attention_num_buckets: 3 "):
        T5Encoder(relative_attention_num_buckets=3)
    with pytest.raises(ValueError, match="relative_attention_max_distance=8"):
        T5Encoder(relative_attention_max_distance=8)


def test_the_table_of_tokens_may_have_either_name_or_both(tmp_path):
    config = T5Encoder(**CONFIGS["gated"])
    params = functional(config.module).init(jax.random.key(0))
    save_pretrained(tmp_path, config, params)
    path, name = tmp_path / "model.safetensors", "encoder.embed_tokens.weight"
    tensors = load_file(path)
    both = tensors | {name: tensors["shared.weight"]}
    other = {key: tensor for key, tensor in both.items() if key != "shared.weight"}
    for kind in (both, other):
        save_file(kind, path)
        assert jax.tree.all(jax.tree.map(np.array_equal, from_pretrained(tmp_path).params, params))
    save_file(tensors | {name: tensors["shared.weight"] + 1}, path)
    with pytest.raises(ValueError, match=r"not equal to shared.weight, .* encoder.embed_tokens.weight"):
        from_pretrained(tmp_path)


def test_wrong_inputs_are_refused():
    network = functional(T5Encoder(**CONFIGS["gated"]).module)
    params = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(ValueError, match="ids: integers"):
        jax.eval_shape(network.apply, params, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"mask: \(2, 4\) instead of the shape of ids, \(2, 3\)"):
        jax.eval_shape(network.apply, params, np.zeros((2, 3), int), np.zeros((2, 4), bool))
