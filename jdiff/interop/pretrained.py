"""Networks as folders in the layout of diffusers and transformers: config.json beside safetensors.

    config, network, params, _ = from_pretrained("path/to/unet")
    save_pretrained("another/folder", config, params)

Parameters are read one tensor at a time, each into its sharding: host memory holds little more than the largest tensor.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.interop.names import Place, held, place, unneeded
from jdiff.interop.tensors import DIFFUSERS, Tensors, open_tensors, save_tensors
from jdiff.models import CONFIGS, Compute, Network, functional
from jdiff.typing import Array, Params

VERSION = "0.42.0"  # of diffusers, whose fields these are


class Pretrained(NamedTuple):
    """What a folder holds."""

    config: Any
    network: Network
    params: Params
    differences: list[str]
    """What did not fit; empty unless it was read with strict=False."""


def from_pretrained(
    source: str | os.PathLike,
    *,
    expected: type | None = None,
    compute: Compute | None = None,
    dtype: Any = jnp.float32,
    shardings: Callable[[Params], Any] | None = None,
    strict: bool = True,
) -> Pretrained:
    """The network of a folder, or of a repository of the Hugging Face hub ("name/name").

    `expected`: the config class that it must be. `shardings`: from the abstract parameters to a tree of shardings.
    Raises ValueError that lists every field of the config that is not known or not supported, and every tensor that is
    missing, of the wrong shape, or that the network does not use. With `strict=False` such tensors are listed in
    `differences` instead, and what is missing has its initial value (of key 0).
    """
    folder = located(source)
    config = read_config(folder / "config.json", expected)
    config = config if compute is None else dataclasses.replace(config, compute=compute)
    with open_tensors(folder, weights_name(config)) as tensors:
        return read_network(config, tensors, str(folder), dtype=dtype, shardings=shardings, strict=strict)


def read_network(
    config: Any,
    tensors: Tensors,
    source: str,
    *,
    dtype: Any = jnp.float32,
    shardings: Callable[[Params], Any] | None = None,
    strict: bool = True,
) -> Pretrained:
    """The network of a config with these tensors, which errors say to be of `source`. Otherwise as `from_pretrained`,
    which also says what it raises."""
    network = functional(config.module)
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    wanted = shardings(abstract) if shardings else jax.tree.map(lambda _: None, abstract)
    places = {path: held(config, where, tensors.entries) for path, where in _places(config, abstract)}
    bad, differences = _compared(config, places, tensors)
    if strict and differences:
        raise ValueError(f"{source} does not fit {config.published}:\n" + "\n".join(differences))
    start = network.init(jax.random.key(0)) if bad else None
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        key = names_of(path)
        sharding = at(wanted, key)
        if key in bad:
            leaves[key] = jax.device_put(at(start, key).astype(dtype), sharding)
        else:
            leaves[key] = _read(tensors, places[key], leaf.shape, dtype, sharding)
    params = jax.tree_util.tree_map_with_path(lambda path, _: leaves[names_of(path)], abstract)
    return Pretrained(config, network, params, differences)


def save_pretrained(folder: str | os.PathLike, config: Any, params: Params) -> None:
    """Writes a network so that PyTorch's class of that name loads it. Each tensor keeps its dtype.

    Raises ValueError for parameters that are not those of `config`, and for a network that the class cannot be.
    """
    _check_published(config)
    abstract = jax.eval_shape(functional(config.module).init, jax.random.key(0))
    shapes = {names_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    given = {names_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    wrong = sorted("/".join(key) for key in shapes if key not in given or given[key].shape != shapes[key])
    wrong += sorted("/".join(key) for key in given.keys() - shapes.keys())
    if wrong:
        raise ValueError(f"params are not those of {config}: {', '.join(wrong)}")
    tensors: dict[str, Array | np.ndarray] = {}
    for key, leaf in given.items():
        where = place(config, key, leaf.shape)
        for i, name in enumerate(where.keys):
            tensors[name] = where.theirs(leaf[i] if where.stacked else leaf)
    tensors |= constants(config)
    save_tensors(Path(folder), tensors, weights_name(config))
    write_config(Path(folder) / "config.json", config)


def located(source: str | os.PathLike) -> Path:
    """The folder itself, or a repository of the hub, downloaded without anything that is pickled.

    Raises FileNotFoundError for what is neither."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(f"{source} is no folder, and no name of a repository as in organization/model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"{source} is no folder here, and the hub did not give it: {error}") from error


def constants(config: Any) -> dict[str, np.ndarray]:
    """What files of this class hold that is no parameter: it follows from the config."""
    return config.constants() if hasattr(config, "constants") else {}


def weights_name(config: Any) -> str:
    """The name of the safetensors beside config.json, which depends on the library."""
    return getattr(config, "weights", DIFFUSERS)


def read_config(path: Path, expected: type | None = None) -> Any:
    """The config in a file.

    Raises ValueError that lists every field that is not known, or has a value that is not supported; for a file that is
    not JSON, or of another class than `expected` or any that there is; FileNotFoundError where there is no file.
    """
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    name = fields.get("_class_name") or (fields.get("architectures") or [None])[0]
    known = {config.published: config for config in CONFIGS}
    if expected is not None and name in getattr(expected, "inside", ()):
        name, fields = expected.published, _inside(fields, expected.inside[name])
    if name not in known:
        raise ValueError(f"{path} is of class {name}; there are {', '.join(known)}")
    config = known[name]
    if expected is not None and config is not expected:
        raise ValueError(f"{path} is of class {name}, not {expected.published}")
    return _config(config, fields, path)


def _config(config: type, fields: Mapping[str, Any], path: Path) -> Any:
    own = {field.name for field in _published_fields(config)}
    ignored = getattr(config, "ignored", frozenset())
    given = {key: value for key, value in fields.items() if not key.startswith("_") and key not in ignored}
    derived = getattr(config, "derived", ())
    unknown = sorted(given.keys() - own - config.fixed.keys() - set(derived))
    unsupported = [
        f"{key}={given[key]!r} (supported: {value!r})"
        for key, value in config.fixed.items()
        if key in given and given[key] != value
    ]
    if unknown or unsupported:
        problems = [f"unknown {key}={given[key]!r}" for key in unknown] + [
            f"unsupported {what}" for what in unsupported
        ]
        raise ValueError(f"{path}, fields of {config.published}: {'; '.join(problems)}")
    made = config(**{key: _tuples(value) for key, value in given.items() if key in own})
    wrong = [f"{key}={given[key]!r}" for key in derived if key in given and given[key] != getattr(made, key)]
    if wrong:
        raise ValueError(f"{path}, fields of {config.published}: {', '.join(wrong)} contradict {made}")
    return made


def _inside(fields: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The fields of one part of a config of several; older files say some of them once more, and mean those."""
    return (fields.get(section) or {}) | (fields.get(f"{section}_dict") or {})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def write_config(path: Path, config: Any) -> None:
    """Writes config.json, whole."""
    own = {field.name: getattr(config, field.name) for field in _published_fields(config)}
    name = {"_class_name": config.published, "_diffusers_version": VERSION}
    if weights_name(config) != DIFFUSERS:
        name = {"architectures": [config.published], "model_type": config.model_type}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(name | config.fixed | own, indent=2, sort_keys=True) + "\n")
    os.replace(part, path)


def _published_fields(config: Any) -> list[dataclasses.Field]:
    """The fields of a config that the published class has, too."""
    without = {"compute"} | getattr(config, "beyond", frozenset())
    return [field for field in dataclasses.fields(config) if field.name not in without]


def _check_published(config: Any) -> None:
    beyond = [field for field in dataclasses.fields(config) if field.name in getattr(config, "beyond", ())]
    other = [f"{f.name}={getattr(config, f.name)!r}" for f in beyond if getattr(config, f.name) != f.default]
    if other:
        wanted = ", ".join(f"{field.name}={field.default!r}" for field in beyond)
        raise ValueError(f"{config.published} has no {', '.join(other)}; it can be saved with {wanted} alone")


def names_of(path: tuple) -> tuple[str, ...]:
    """The names along the path of a leaf."""
    return tuple(entry.key for entry in path)


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """The part of a nested dict at a path."""
    for name in path:
        tree = tree[name]
    return tree


def _places(config: Any, abstract: Params) -> Iterator[tuple[tuple[str, ...], Place]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        yield names_of(path), place(config, names_of(path), leaf.shape)


def _compared(
    config: Any, places: Mapping[tuple[str, ...], Place], tensors: Tensors
) -> tuple[set[tuple[str, ...]], list[str]]:
    """The parameters that cannot be read, and everything that differs."""
    bad, differences, used = set(), [], set()
    for path, where in places.items():
        used |= set(where.keys)
        for key in where.keys:
            entry = tensors.entries.get(key)
            if entry is None:
                differences.append(f"missing {tensors.spelled(key)} {where.shape}")
            elif entry.shape != where.shape:
                name = tensors.spelled(key)
                differences.append(f"wrong shape of {name}: {entry.shape} instead of {where.shape}")
            else:
                continue
            bad.add(path)
        if path not in bad and not where.stacked and len(where.keys) > 1:
            first = tensors.read(where.keys[0])
            others = [key for key in where.keys[1:] if not np.array_equal(tensors.read(key), first)]
            if others:
                bad.add(path)
                differences.append(f"not equal to {where.keys[0]}, whose copies they should be: {', '.join(others)}")
    for key, value in constants(config).items():
        used.add(key)
        # A file may have stored it in half precision.
        if key in tensors.entries and not np.allclose(tensors.read(key).astype(np.float32), value, atol=4e-3):
            differences.append(f"{tensors.spelled(key)} is not what {config.published} has with this config")
    unused = [key for key in tensors.entries if key not in used and not unneeded(config, key, tensors.entries)]
    return bad, differences + [f"not used: {tensors.spelled(key)} {tensors.entries[key].shape}" for key in unused]


@partial(jax.jit, donate_argnums=0)
def _placed(stack: Array, tensor: Array, i: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stack, tensor, i, 0)


def _read(tensors: Tensors, where: Place, shape: tuple[int, ...], dtype: Any, sharding: Any) -> Array:
    """One parameter, its tensors read one after the other."""
    if not where.stacked:
        return jax.device_put(where.ours(tensors.read(where.keys[0])).astype(dtype), sharding)
    stack = jnp.zeros(shape, dtype, device=sharding)
    for i, key in enumerate(where.keys):
        stack = _placed(stack, where.ours(tensors.read(key)).astype(dtype), i)
    return stack
