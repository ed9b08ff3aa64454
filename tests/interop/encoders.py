"""Encoders beside transformers' classes; configs as they lie on the hub."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.models import functional
from tests.interop.peers import torch


def with_entry(tree, path, value):
    """The nested dict with another value at a path."""
    name, *rest = path
    return tree | {name: with_entry(tree[name], rest, value) if rest else value}


def side_by_side(model, outputs, weight, our_outputs, *inputs):
    """(theirs, ours) for `agree`: all outputs in one vector, each over its greatest value, so that none hides another.

    They are functions of a parameter named `weight` of the model, a table of embeddings, or of the input.
    """
    parts = outputs(model, *(torch.tensor(np.moveaxis(x, -1, 1).copy()) for x in inputs))
    scales = [float(part.detach().abs().max()) for part in parts]

    def theirs(model, x):
        if weight is None:
            parts = outputs(model, x)
        else:
            parts = torch.func.functional_call(_Outputs(model, outputs), {f"model.{weight}": x}, ())
        return torch.cat([part.reshape(-1) / scale for part, scale in zip(parts, scales, strict=True)])

    def ours(network, params, x):
        parts = our_outputs(network, params, x)
        return jnp.concatenate([part.reshape(-1) / scale for part, scale in zip(parts, scales, strict=True)])

    return theirs, ours


class _Outputs(torch.nn.Module):
    def __init__(self, model, outputs):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self):
        return self.outputs(self.model)


def parameters(kind, config):
    """How many parameters a class has, without making any: ours from a config.json, or transformers'."""
    if isinstance(config, dict):
        names = {field.name for field in dataclasses.fields(kind)}
        own = {key: value for key, value in config.items() if key in names}
        network = functional(kind(**own).module)
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))))
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in kind(config).parameters())


def written(folder, fields):
    """The path of a config.json with these fields."""
    path = folder / "config.json"
    path.write_text(json.dumps(fields))
    return path


# What older releases wrote into every config, and into every part of one.
GENERIC = {
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.16.0.dev0",
    "typical_p": 1.0,
    "use_bfloat16": False,
}
_TEXT = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
# Stable Diffusion 1.5, and the first encoder of XL; XL's second.
SD15_TEXT = _TEXT | {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
}
BIG_G = SD15_TEXT | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "torch_dtype": "float16",
    "transformers_version": "4.32.0.dev0",
}
# openai/clip-vit-large-patch14, which is both encoders.
VIT_L = {
    "_name_or_path": "clip-vit-large-patch14/",
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": GENERIC | _TEXT | {"_name_or_path": ""},
    "text_config_dict": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": GENERIC
    | {
        "_name_or_path": "",
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dropout": 0.0,
        "eos_token_id": None,
        "hidden_act": "quick_gelu",
        "hidden_size": 1024,
        "image_size": 224,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "pad_token_id": None,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "vision_config_dict": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
# Stable Diffusion 3's third encoder, T5 v1.1 XXL.
T5_XXL = {
    "_name_or_path": "google/t5-v1_1-xxl",
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "vocab_size": 32128,
}
