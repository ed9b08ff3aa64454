"""Networks as folders in the layout of diffusers and transformers: config.json beside safetensors.

    config, network, params, _ = from_pretrained("path/to/unet")
    save_pretrained("another/folder", config, params)

Parameters are read one tensor at a time, each into its sharding: host memory holds little more than the largest tensor.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.interop.configs import (
    DEPTHS,
    check_published,
    others,
    published_fields,
    read_config,
    replaced,
    weights_name,
    write_config,
)
from jdiff.interop.names import Place, held, place, unneeded
from jdiff.interop.tensors import FLOATS, Tensors, open_tensors, save_tensors
from jdiff.models import Compute, Network, functional
from jdiff.models.functional import Constant
from jdiff.typing import Array, Params


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
    variant: str | None = None,
    compute: Compute | None = None,
    dtype: Any = jnp.float32,
    shardings: Callable[[Params], Any] | None = None,
    strict: bool = True,
) -> Pretrained:
    """The network of a folder, or of a repository of the Hugging Face hub ("name/name").

    `expected`: the config class that it must be. `variant`: of the weights, such as "fp16". `shardings`: from the
    abstract parameters to a tree of shardings. Raises ValueError that lists every field of the config that has a wrong
    type or is not supported, and every tensor that is missing, of the wrong shape or dtype, that the network does not
    use, or that is not finite. With `strict=False` such tensors are listed in `differences` instead; what cannot be
    read has its initial value (of key 0).
    """
    folder = located(source)
    config = read_config(folder / "config.json", expected)
    config = config if compute is None else replaced(config, compute=compute)
    with open_tensors(folder, weights_name(config), variant) as tensors:
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
    network, abstract = fitting(config, tensors, source)
    wanted = shardings(abstract) if shardings else jax.tree.map(lambda _: None, abstract)
    places = {path: held(config, where, tensors.entries) for path, where in _places(config, abstract)}
    bad, differences = _compared(config, places, tensors)
    if strict and differences:
        raise ValueError(_unfit(config, source, differences))
    start = network.init(jax.random.key(0)) if bad else None
    leaves, infinite = {}, []
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        key = names_of(path)
        sharding = at(wanted, key)
        if key in bad:
            leaves[key] = jax.device_put(at(start, key).astype(dtype), sharding)
        else:
            leaves[key] = _read(tensors, places[key], leaf.shape, dtype, sharding, infinite)
    differences += [f"not finite: {tensors.spelled(name)}" for name in infinite]
    if strict and differences:
        raise ValueError(_unfit(config, source, differences))
    params = jax.tree_util.tree_map_with_path(lambda path, _: leaves[names_of(path)], abstract)
    return Pretrained(config, network, params, differences)


def fitting(config: Any, tensors: Tensors, source: str) -> tuple[Network, Params]:
    """The network of a config and its abstract parameters. Raises ValueError as `check_count` does, and for a config
    whose fields do not fit together."""
    check_count(config, tensors, source)
    try:
        network = functional(config.module)
        return network, jax.eval_shape(network.init, jax.random.key(0))
    except ValueError as error:
        raise ValueError(f"{source}, config of {config.published}: {error}") from error


def check_count(config: Any, tensors: Tensors, source: str) -> None:
    """Raises ValueError for a config of more blocks than there are tensors, before anything is built."""
    levels = len(getattr(config, "block_out_channels", (1,)))
    counts = [getattr(config, field.name) for field in published_fields(config) if field.name in DEPTHS]
    blocks = max((sum(count) if isinstance(count, tuple) else count * levels for count in counts), default=0)
    if blocks > len(tensors.entries):
        raise ValueError(
            f"{source} does not fit {config.published}: its config has {blocks} blocks, and its weights have "
            f"{len(tensors.entries)} tensors"
        )


def _unfit(config: Any, source: str, differences: list[str]) -> str:
    return f"{source} does not fit {config.published}:\n" + "\n".join(differences)


def save_pretrained(folder: str | os.PathLike, config: Any, params: Params) -> None:
    """Writes a network so that PyTorch's class of that name loads it. Each tensor keeps its dtype, and config.json the
    fields that the config was read with.

    Raises ValueError for parameters that are not those of `config`, and for a network that the class cannot be.
    """
    check_published(config)
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
    tensors |= {name: constant.make() for name, constant in constants(config).items()}
    save_tensors(Path(folder), tensors, weights_name(config))
    # transformers reads weights in the dtype that the config says.
    dtype = str(jnp.result_type(*given.values()))
    told = {key: dtype for key in ("dtype", "torch_dtype") if isinstance(others(config).get(key), str)}
    write_config(Path(folder) / "config.json", config, **told)


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


def constants(config: Any) -> dict[str, Constant]:
    """What files of this class hold that is no parameter: it follows from the config."""
    return config.constants() if hasattr(config, "constants") else {}


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
            entry, name = tensors.entries.get(key), tensors.spelled(key)
            if entry is None:
                differences.append(f"missing {name} {where.shape}")
            elif entry.shape != where.shape:
                differences.append(f"wrong shape of {name}: {entry.shape} instead of {where.shape}")
            elif entry.dtype not in FLOATS:
                differences.append(f"wrong dtype of {name}: {entry.dtype} instead of one of {', '.join(FLOATS)}")
            else:
                continue
            bad.add(path)
        if path not in bad and not where.stacked and len(where.keys) > 1:
            first = tensors.read(where.keys[0])
            unequal = [key for key in where.keys[1:] if not np.array_equal(tensors.read(key), first)]
            if unequal:
                bad.add(path)
                differences.append(f"not equal to {where.keys[0]}, whose copies they should be: {', '.join(unequal)}")
    for key, constant in constants(config).items():
        used.add(key)
        entry, name = tensors.entries.get(key), tensors.spelled(key)
        if entry is not None and entry.shape != constant.shape:
            differences.append(f"wrong shape of {name}: {entry.shape} instead of {constant.shape}")
        # A file may have stored it in half precision.
        elif entry is not None and not np.allclose(tensors.read(key).astype(np.float32), constant.make(), atol=4e-3):
            differences.append(f"{name} is not what {config.published} has with this config")
    unused = [key for key in tensors.entries if key not in used and not unneeded(config, key, tensors.entries)]
    return bad, differences + [f"not used: {tensors.spelled(key)} {tensors.entries[key].shape}" for key in unused]


@partial(jax.jit, donate_argnums=0)
def _placed(stack: Array, tensor: Array, i: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stack, tensor, i, 0)


def _read(
    tensors: Tensors, where: Place, shape: tuple[int, ...], dtype: Any, sharding: Any, infinite: list[str]
) -> Array:
    """One parameter, its tensors read one after the other; adds the names of those that are not finite."""

    def one(key: str) -> np.ndarray:
        tensor = where.ours(tensors.read(key)).astype(dtype)
        infinite.extend([] if _finite(tensor) else [key])
        return tensor

    if not where.stacked:
        return jax.device_put(one(where.keys[0]), sharding)
    stack = jnp.zeros(shape, dtype, device=sharding)
    for i, key in enumerate(where.keys):
        stack = _placed(stack, one(key), i)
    return stack


# Of numbers of 16 bits, whose test in ml_dtypes is slow: the bits that infinity and NaN have.
EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80}


def _finite(tensor: np.ndarray) -> bool:
    bits = EXPONENTS.get(tensor.dtype.name)
    if bits is None:
        return bool(np.isfinite(tensor).all())
    return not (tensor.view(np.uint16) & bits == bits).any()
