"""How a network computes, which changes nothing of what it is: dtype, scan and rematerialization."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from jdiff.models.keys import Keys

# What the backward pass may keep of a block; it computes the rest again.
REMAT: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a network computes. Parameters are float32, whatever it says.

    Raises ValueError for a dtype or a policy that is not one.
    """

    dtype: str = "float32"
    """Of activations: "float32" or "bfloat16"."""
    remat: str = "none"
    """What blocks compute again in the backward pass: "none", "full" (everything), "dots" (all but products of
    matrices), "dots_with_no_batch_dims" (and those of attention)."""
    scan: bool = True
    """Whether equal blocks are one loop, compiled once, or written out."""

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: {self.dtype!r} is not float32 or bfloat16")
        if self.remat not in ("none", *REMAT):
            raise ValueError(f"remat: {self.remat!r} is not none or one of {', '.join(REMAT)}")

    def checkpointed(self, block: Callable) -> Callable:
        """The block with its rematerialization."""
        return block if self.remat == "none" else jax.checkpoint(block, policy=REMAT[self.remat])


PLAIN = Compute()  # the default of every network


def rematerialized(call: Callable[..., Any]) -> Callable[..., Any]:
    """The `__call__` of a block, (self, arrays, options) -> arrays, with the rematerialization that its own `compute`
    says."""

    @functools.wraps(call)
    def checkpointed(self: Any, *inputs: Any, **options: Any) -> Any:
        if self.compute.remat == "none":
            return call(self, *inputs, **options)
        graph, state = nnx.split(self)
        merged = lambda state, *inputs: call(nnx.merge(graph, state), *inputs, **options)
        return self.compute.checkpointed(merged)(state, *inputs)

    return checkpointed


def by_rows(tree: Any) -> Any:
    """The same arrays, those of rows of a batch split over the axes `data` and `fsdp` of the mesh in use, if one is.

    Without it XLA splits activations as the parameters that they meet are split, and sends them, which are larger, to
    keep those where they are. Other axes are left to XLA.
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = tuple(name for name in ("data", "fsdp") if name in mesh.axis_names)
    shards = math.prod(mesh.shape[name] for name in names)

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.ndim < 2 or leaf.shape[0] % shards:
            return leaf
        free = (jax.sharding.PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)
        return jax.lax.with_sharding_constraint(leaf, jax.sharding.PartitionSpec(names, *free))

    return jax.tree.map(placed, tree) if shards > 1 else tree


class Stack(nnx.Module):
    """Equal blocks in a row, `make(rngs)` each: (x, ...) -> x. Their parameters are stacked along a first axis, under
    the name `each`, whether they are scanned or not."""

    def __init__(self, make: Callable[[Any], nnx.Module], depth: int, compute: Compute, *, rngs: nnx.Rngs):
        self.depth, self.compute = depth, compute
        keys = jax.random.split(rngs(), depth)
        graph = nnx.split(nnx.eval_shape(lambda: make(Keys(jax.random.key(0)))))[0]
        self.each = nnx.merge(graph, jax.vmap(lambda key: nnx.state(make(Keys(key))))(keys))

    def __call__(self, x: Any, *inputs: Any, collect: bool = False) -> Any:
        """x, an array or a tuple, through all blocks, each given the same `inputs`; with `collect`, also what each
        block was given, stacked."""
        graph, state = nnx.split(self.each)

        inputs = by_rows(inputs)

        def block(x: Any, state: nnx.State) -> tuple[Any, Any]:
            x = by_rows(x)
            return by_rows(nnx.merge(graph, state)(x, *inputs)), x if collect else None

        block = self.compute.checkpointed(block)
        if self.compute.scan:
            x, given = jax.lax.scan(block, x, state)
        else:
            seen = []
            for i in range(self.depth):
                x, before = block(x, jax.tree.map(lambda leaf, i=i: leaf[i], state))
                seen.append(before)
            given = jax.tree.map(lambda *parts: jax.numpy.stack(parts), *seen) if collect else None
        return (x, given) if collect else x
