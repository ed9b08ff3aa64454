"""A Flax NNX module as two pure functions on a plain dict of arrays.

An NNX module owns its variables; the rest of the library owns its parameters: they are sharded, averaged, saved,
pruned and differentiated as one pytree. `functional` splits a module once, abstractly, into its graph and its
parameters, and merges them again inside `apply`, which costs nothing after tracing. A module that keeps anything
but parameters (running statistics, random streams, counters) is refused: everything that changes is passed in.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jdiff.models.keys import Keys
from jdiff.typing import Array, Key, Params


class Network(NamedTuple):
    """A network as two pure functions; both work under `jit`, `vmap` and `grad`.

    `init(key) -> params`: a nested dict, string keys, of arrays (float32 for the networks of this folder).

    `apply(params, *inputs, method="__call__", **options)`: what the module's method gives for inputs and options; for
    the networks that predict, `apply(params, x, noise_label, cond) -> raw`, with `x` [B, H, W, C] float32,
    `noise_label` [B] float32, `cond` a dict of arrays with a leading batch axis, possibly empty, and the result
    [B, H, W, out_channels] in the dtype of `x`. Raises `ValueError` naming the entries when `params` does not have
    exactly the names and shapes that `init` gives.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Any]


class Constant(NamedTuple):
    """An array that files hold beside the parameters, and that follows from a network's config."""

    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def functional(make: Callable[[Any], nnx.Module]) -> Network:
    """The `Network` of the module that `make(rngs)` constructs.

    `make` is called here on abstract values, and once in every `init`; `rngs` is a `Keys`, which gives a key a call.
    Raises `ValueError` naming every variable that is not an `nnx.Param`.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(Keys(jax.random.key(0)))))
    variables = dict(nnx.to_flat_state(abstract))
    other = {_name(path): type(v).__name__ for path, v in variables.items() if type(v) is not nnx.Param}
    if other:
        listed = ", ".join(f"{name} ({kind})" for name, kind in other.items())
        raise ValueError(f"make: a network may hold only nnx.Param, this one also holds {listed}")
    shapes = {tuple(map(str, path)): v.shape for path, v in variables.items()}

    def init(key: Key) -> Params:
        state = nnx.state(make(Keys(key)))
        return _nest({tuple(map(str, path)): v[...] for path, v in nnx.to_flat_state(state)})

    def apply(params: Params, *inputs: Any, method: str = "__call__", **options: Any) -> Any:
        flat = _flatten(params)
        _check(flat, shapes)
        values = {path: v.replace(flat[tuple(map(str, path))]) for path, v in variables.items()}
        module = nnx.merge(graph, nnx.from_flat_state(values))
        return getattr(module, method)(*inputs, **options)

    return Network(init, apply)


def _name(path: tuple) -> str:
    return "/".join(map(str, path))


def _nest(flat: dict[tuple[str, ...], Array]) -> Params:
    tree: Params = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


def _flatten(params: Params) -> dict[tuple[str, ...], Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {tuple(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def _check(flat: dict[tuple[str, ...], Array], shapes: dict[tuple[str, ...], tuple[int, ...]]) -> None:
    missing = [_name(path) for path in shapes if path not in flat]
    unknown = [_name(path) for path in flat if path not in shapes]
    if missing or unknown:
        raise ValueError(f"params: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    wrong = [f"{_name(p)} {flat[p].shape} instead of {s}" for p, s in shapes.items() if flat[p].shape != s]
    if wrong:
        raise ValueError(f"params: wrong shapes: {', '.join(wrong)}")
