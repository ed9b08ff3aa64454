"""How a network computes, which changes nothing of what it is: dtype, scan and rematerialization."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx

from jdiff.models import ambient
from jdiff.models.keys import Keys
from jdiff.models.pipeline import pipelined

# What the backward pass may keep of a block; it computes the rest again.
REMAT: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload_dots": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a network computes. Parameters are float32, whatever it says.

    Raises ValueError for a dtype or a policy that is not one.
    """

    dtype: str = "float32"
    """Of activations: "float32", "bfloat16" or "float16", whose losses training scales (`train/scaling.py`)."""
    remat: str = "none"
    """What blocks compute again in the backward pass: "none", "full" (everything), "dots" (all but products of
    matrices), "dots_with_no_batch_dims" (and those of attention), "offload_dots" (the same; what is kept lies in the
    host's memory, but on a CPU)."""
    scan: bool = True
    """Whether equal blocks are one loop, compiled once, or written out."""

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype: {self.dtype!r} is not float32, bfloat16 or float16")
        if self.remat not in ("none", *REMAT):
            raise ValueError(f"remat: {self.remat!r} is not none or one of {', '.join(REMAT)}")

    @property
    def upcast(self) -> "Compute":
        """Of a network whose activations overflow in float16: float32 in its place."""
        return replace(self, dtype="float32") if self.dtype == "float16" else self

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
        block was given, stacked.

        Where the ambient mesh has an axis `pipeline` that divides the blocks, they are its stages (`pipeline.py`), but
        for those that collect."""
        graph, state = nnx.split(self.each)
        stages = ambient.size("pipeline")

        def through(x: Any, state: nnx.State, inputs: tuple) -> tuple[Any, Any]:
            block = lambda x, state: (nnx.merge(graph, state)(x, *inputs), x if collect else None)
            return self._through(self.compute.checkpointed(block), x, state)

        if stages > 1 and self.depth % stages == 0 and not collect:
            return pipelined(lambda x, state, inputs: through(x, state, inputs)[0], x, state, inputs, stages)
        x, given = through(x, state, inputs)
        return (x, given) if collect else x

    def _through(self, block: Callable[[Any, nnx.State], tuple[Any, Any]], x: Any, state: nnx.State) -> Any:
        """x through the blocks that `state` holds, and what each gives besides, stacked."""
        if self.compute.scan:
            return jax.lax.scan(block, x, state)
        seen = []
        depth = jax.tree.leaves(state)[0].shape[0]
        parts = jax.tree.map(lambda leaf: jax.lax.split(leaf, [1] * depth), state)
        for i in range(depth):
            x, before = block(x, jax.tree.map(lambda leaf, part, i=i: part[i][0], state, parts))
            seen.append(before)
        return x, jax.tree.map(lambda *parts: jax.numpy.stack(parts), *seen)
