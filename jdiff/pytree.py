"""Frozen dataclasses as pytrees: what `jax.tree_util.register_dataclass` is for, with classes told apart.

In JAX 0.10 the structures of values of two classes that it registered compare as equal where the classes have as many
fields and the same static values, as DDIM(eta=1.0) and DPMpp2MSDE(eta=1.0) have. A compiled function that takes either
then runs, once in some hundred times, what was compiled for the other. Structures made here differ with the class.
"""

import dataclasses
from typing import Any, TypeVar

from jax.tree_util import GetAttrKey, register_pytree_with_keys

T = TypeVar("T", bound=type)


def pytree(cls: T) -> T:
    """Registers a dataclass: fields whose metadata has static=True belong to the structure, all others are leaves.

    Its values are made anew by their fields' names, so that `__post_init__` runs on whatever JAX puts into the leaves.
    """
    fields = [field for field in dataclasses.fields(cls) if field.init]
    static = tuple(field.name for field in fields if field.metadata.get("static", False))
    dynamic = tuple(field.name for field in fields if field.name not in static)
    values = lambda value, names: tuple(getattr(value, name) for name in names)

    def flatten(value: Any) -> tuple[tuple, tuple]:
        return values(value, dynamic), values(value, static)

    def flatten_with_keys(value: Any) -> tuple[tuple, tuple]:
        leaves, structure = flatten(value)
        return tuple((GetAttrKey(name), leaf) for name, leaf in zip(dynamic, leaves, strict=True)), structure

    def unflatten(structure: tuple, leaves: Any) -> Any:
        return cls(**dict(zip(static, structure, strict=True)), **dict(zip(dynamic, leaves, strict=True)))

    register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
