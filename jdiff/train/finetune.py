"""Training that starts from what others have trained: parameters are taken where names and shapes fit, and told.

What is taken and what is not stands in the run's init.json.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.atomic_files import write_atomically
from jdiff.interop import from_pretrained
from jdiff.train.restore import open_run
from jdiff.train.state import TrainState
from jdiff.typing import Params


def started_from(source: str, state: TrainState, directory: Path) -> tuple[TrainState, str]:
    """A new run's state with the parameters of `source`, a run's averaged ones or those of a network in the layout of
    diffusers, in a folder or on the hub; and what has been taken, in words.

    Raises ValueError where nothing fits, and as `open_run` and `from_pretrained` do.
    """
    run = (Path(source) / "manifest.json").is_file()
    there = _flat(open_run(Path(source)).state().ema if run else from_pretrained(source).params)
    taken: list[str] = []
    told: dict[str, str] = {}

    def choose(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = there.get(name)
        if found is None or found.shape != leaf.shape:
            told[name] = "not there" if found is None else f"{found.shape} there and {leaf.shape} here"
            return leaf
        taken.append(name)
        values = np.asarray(found, leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: values[index])

    params = jax.tree_util.tree_map_with_path(choose, state.params)
    unused = sorted(there.keys() - {*taken, *told})
    if not taken:
        raise ValueError(f"init: none of the {len(told)} arrays of the network is in {source} as it is here")
    if jax.process_index() == 0:
        record = {"source": source, "taken": sorted(taken), "new": told, "unused": unused}
        write_atomically(directory / "init.json", json.dumps(record, indent=2) + "\n")
    few = lambda names: ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    words = f"{len(taken)} of {len(taken) + len(told)} arrays are those of {source}"
    for kind, names in (("new", [f"{name} ({why})" for name, why in told.items()]), ("not used", unused)):
        words += f"; {kind}: {few(names)}" if names else ""
    kept = {name: jax.tree.map(jnp.copy, params) for name in state.profiles}
    return state._replace(params=params, ema=jax.tree.map(jnp.copy, params), profiles=kept), words


def _flat(params: Params) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
