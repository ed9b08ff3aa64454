"""config.json of diffusers and transformers, in and out.

A field that the class of the config does not read, or that changes nothing of what it computes, is kept aside as
`others(config)` and written back; it is listed at the level DEBUG of the logger "jdiff". A field that the class reads
and that is not supported is refused by name. Absent fields have the defaults of the class.

Nothing of a config is believed before it was compared with the declared types and with ranges that no network exceeds.
"""

import dataclasses
import functools
import json
import logging
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jdiff.interop.tensors import DIFFUSERS
from jdiff.json_files import read_object
from jdiff.models import CONFIGS

VERSION = "0.42.0"  # of diffusers, whose fields these are
LOG = logging.getLogger("jdiff")

# Names that configs of other releases have for a class, and of classes whose config describes a network of one of ours.
CLASSES = {
    "FlaxAutoencoderKL": "AutoencoderKL",
    "FlaxUNet2DConditionModel": "UNet2DConditionModel",
    "FlaxCLIPTextModel": "CLIPTextModel",
    "T5ForConditionalGeneration": "T5EncoderModel",
    "T5Model": "T5EncoderModel",
    "Transformer2DModel": "DiTTransformer2DModel",
}
# Classes of which each reads the config of the other.
ALIKE = ({"CLIPTextModel", "CLIPTextModelWithProjection"},)
# What loaders read of any config, and the values that change nothing.
LOADED = {"quantization_config": (None,), "transformers_weights": (None,)}
# Of Transformer2DModel, what makes it a DiT.
DIT = {"norm_type": "ada_norm_zero", "num_vector_embeds": None, "caption_channels": None}
# What may be zero; every other whole number is at least 1.
FROM_ZERO = {"freq_shift", "downsample_padding", "num_embeds_ada_norm", "eos_token_id", "dual_attention_layers"}
FROM_ZERO |= {"transformer_layers_per_block", "label_dim", "augment_dim", "attn_resolutions", "num_encoder_blocks"}
FROM_ZERO |= {"num_decoder_blocks"}
MOST = 10**6  # of any number of channels, heads, tokens or classes
MOST_ENTRIES = 4096  # of a list
MOST_FLOAT = 1e38
POSITIVE = {"norm_eps", "layer_norm_eps", "layer_norm_epsilon", "scaling_factor", "mid_block_scale_factor"}
POSITIVE |= {"latents_std", "latent_magnitude"}
# Counts of blocks, of which more are read than of anything else.
DEPTHS = {"layers_per_block": 16, "num_blocks": 16, "num_encoder_blocks": 16, "num_decoder_blocks": 16}
DEPTHS |= {"num_layers": 1000, "num_hidden_layers": 1000, "transformer_layers_per_block": 1000}
LEVELS = {"block_out_channels": 8, "channel_mult": 8, "num_encoder_blocks": 8, "num_decoder_blocks": 8}


def read_config(path: Path, expected: type | None = None) -> Any:
    """The config in a file.

    Raises ValueError that lists every field that has a wrong type, a value that no network has, or one that is not
    supported; for a file that is no JSON object, or of another class than `expected` or any that there is;
    FileNotFoundError where there is no file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return config_of(read_object(path), path, expected)


def config_of(fields: Mapping[str, Any], path: Path | str, expected: type | None = None) -> Any:
    """The config of the fields of a config.json, which errors say to be in `path`. Raises ValueError as `read_config`
    does."""
    name = _class_name(fields, path)
    known = {config.published: config for config in CONFIGS}
    # Some call a part what is the config of a whole.
    parts = getattr(expected, "inside", {})
    section = parts.get(name) or next((part for part in parts.values() if isinstance(fields.get(part), Mapping)), None)
    if expected is not None and section is not None:
        return _config(expected, _inside(fields, section, path), path)
    ours = CLASSES.get(name, name)
    if expected is not None and any({ours, expected.published} <= alike for alike in ALIKE):
        ours = expected.published
    if ours not in known:
        whole = [config.published for config in CONFIGS if name in getattr(config, "inside", {})]
        what = f"holds {' and '.join(whole)}; ask for one" if whole else f"there are {', '.join(known)}"
        raise ValueError(f"{path} is of class {name}; {what}")
    if expected is not None and known[ours] is not expected:
        raise ValueError(f"{path} is of class {name}, not {expected.published}")
    if name == "Transformer2DModel":
        wrong = [f"{key}={_short(fields.get(key))}" for key, value in DIT.items() if fields.get(key) != value]
        if wrong:
            raise ValueError(f"{path} is a Transformer2DModel with {', '.join(wrong)}, which is no DiT")
    return _config(known[ours], fields, path)


def _class_name(fields: Mapping[str, Any], path: Path | str) -> str:
    listed = fields.get("architectures") or [None]
    name = fields.get("_class_name") or (listed[0] if isinstance(listed, list) else listed)
    if not isinstance(name, str):
        raise ValueError(f"{path}: _class_name or architectures must name one class, got {_short(name)}")
    return name


def _inside(fields: Mapping[str, Any], section: str, path: Path | str) -> dict[str, Any]:
    """The fields of one part of a config of several; older files say some of them once more, and mean those."""
    parts = [fields.get(key) or {} for key in (section, f"{section}_dict")]
    if not all(isinstance(part, Mapping) for part in parts):
        raise ValueError(f"{path}: {section} must be an object, got {_short(fields.get(section))}")
    return parts[0] | parts[1]


def _config(config: type, fields: Mapping[str, Any], path: Path | str) -> Any:
    own, derived = {field.name for field in published_fields(config)}, getattr(config, "derived", ())
    given = {key: value for key, value in fields.items() if not key.startswith("_")}
    values, wrong = {}, []
    for key in sorted(given.keys() & own):
        try:
            values[key] = _typed(key, given[key], _hints(config)[key])
        except ValueError as error:
            wrong.append(str(error))
    supported = {key: alternatives(value) for key, value in config.fixed.items()} | LOADED
    wrong += [
        f"unsupported {key}={_short(given[key])} (supported: {' or '.join(map(repr, supported[key]))})"
        for key in sorted(given.keys() & supported.keys())
        if given[key] not in supported[key]
    ]
    if wrong:
        raise ValueError(f"{path}, fields of {config.published}: {'; '.join(wrong)}")
    try:
        made = config(**values)
    except ValueError as error:
        raise ValueError(f"{path}, fields of {config.published}: {error}") from error
    wrong = [f"{key}={_short(given[key])}" for key in derived if key in given and given[key] != getattr(made, key)]
    if wrong:
        raise ValueError(f"{path}, fields of {config.published}: {', '.join(wrong)} contradict {made}")
    rest = {key: value for key, value in given.items() if key not in own}
    unread = sorted(rest.keys() - config.fixed.keys())
    if unread:
        LOG.debug("%s: %s does not read %s", path, config.published, ", ".join(unread))
    return remembering(made, rest)


def alternatives(value: Any) -> tuple:
    """The values at which a field is supported."""
    return value if isinstance(value, tuple) else (value,)


def remembering(config: Any, fields: Mapping[str, Any]) -> Any:
    """The config with fields of its file that are none of its own. They make no difference between configs."""
    copy = dataclasses.replace(config)
    object.__setattr__(copy, "_others", dict(fields))
    return copy


def others(config: Any) -> dict[str, Any]:
    """The fields that a config's file had besides its own; none for a config that was not read from a file."""
    return getattr(config, "_others", {})


def replaced(config: Any, **changes: Any) -> Any:
    """The config with other values, and what it remembers."""
    return remembering(dataclasses.replace(config, **changes), others(config))


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """A value as its type wants it: lists are tuples, and 2.0 is a whole number. Raises ValueError for another."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in options:
        return None
    problem = ""
    for option in options:
        try:
            return _one(name, value, option)
        except ValueError as error:
            # A list was meant as a list, so that what is wrong inside it is the better message.
            problem = str(error) if not problem or isinstance(value, list) else problem
    raise ValueError(problem)


def _one(name: str, value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        return _tuple(name, value, typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{name}: {_short(value)} is not one of {', '.join(map(repr, typing.get_args(kind)))}")
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and number and value == value // 1:  # not for infinity and NaN, whose quotient is NaN
        return _in_range(name, int(value))
    if kind is float and number and abs(value) <= MOST_FLOAT:
        if name in POSITIVE and value <= 0:
            raise ValueError(f"{name}: {value} is not above 0")
        return float(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a string"}
    raise ValueError(f"{name}: {_short(value)} is not {words.get(kind, 'null')}")


def _tuple(name: str, value: Any, kinds: tuple) -> tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name}: {_short(value)} is not a list")
    most = LEVELS.get(name, MOST_ENTRIES)
    if len(value) > most or (kinds[-1] is not Ellipsis and len(value) != len(kinds)):
        wanted = f"at most {most}" if kinds[-1] is Ellipsis else f"{len(kinds)}"
        raise ValueError(f"{name}: {len(value)} entries, not {wanted}")
    if not value and name not in FROM_ZERO:
        raise ValueError(f"{name}: an empty list")
    return tuple(_typed(name, one, kinds[0]) for one in value)


def _in_range(name: str, value: int) -> int:
    least, most = int(name not in FROM_ZERO), DEPTHS.get(name, MOST)
    if not least <= value <= most:
        raise ValueError(f"{name}: {_short(value)} is not from {least} to {most}")
    return value


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) < 200 else f"{text[:200]}..."


def write_config(path: Path, config: Any, **changed: Any) -> None:
    """Writes config.json, whole: with what the config remembers, and with other values of that where `changed`."""
    own = {field.name: getattr(config, field.name) for field in published_fields(config)}
    fixed = {name: alternatives(value)[0] for name, value in config.fixed.items()}
    name = {"_class_name": config.published, "_diffusers_version": VERSION}
    if weights_name(config) != DIFFUSERS:
        name = {"architectures": [config.published], "model_type": config.model_type}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(fixed | others(config) | changed | own | name, indent=2, sort_keys=True) + "\n")
    os.replace(part, path)


def published_fields(config: Any) -> list[dataclasses.Field]:
    """The fields of a config that the published class has, too."""
    without = {"compute"} | getattr(config, "beyond", frozenset())
    return [field for field in dataclasses.fields(config) if field.name not in without]


def check_published(config: Any) -> None:
    """Raises ValueError for a network that the published class cannot be."""
    beyond = [field for field in dataclasses.fields(config) if field.name in getattr(config, "beyond", ())]
    other = [f"{f.name}={getattr(config, f.name)!r}" for f in beyond if getattr(config, f.name) != f.default]
    if other:
        wanted = ", ".join(f"{field.name}={field.default!r}" for field in beyond)
        raise ValueError(f"{config.published} has no {', '.join(other)}; it can be saved with {wanted} alone")


def weights_name(config: Any) -> str:
    """The name of the safetensors beside config.json, which depends on the library."""
    return getattr(config, "weights", DIFFUSERS)
