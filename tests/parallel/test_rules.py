"""Which arrays lie where, by their paths, and what is said of those that are copied."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jdiff.parallel import Mesh, report, state_sharding, summary
from jdiff.train.trainer import assemble
from tests.parallel.runs import TRANSFORMERS, UNETS, run_of


def rows_of(mesh, shapes, heads=None):
    abstract = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    return {row.path: row for row in report(mesh.build(), abstract, heads)}


def test_large_arrays_are_split_and_small_ones_copied():
    rows = rows_of(Mesh(fsdp=4), {"wide": (3, 3, 64, 128), "odd": (129, 131), "small": (64,)})
    assert rows["wide"].spec == P(None, None, None, "fsdp") and not rows["wide"].copied
    assert rows["odd"].spec == rows["small"].spec == P()
    assert rows["odd"].copied == ("fsdp=4 divides no axis that is left",)
    assert rows["small"].copied == ("smaller than 16384 values",)
    alone = rows_of(Mesh(), {"wide": (512, 512)})["wide"]
    assert alone.spec == P() and not alone.copied  # no axis of the mesh splits parameters


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("blocks/each/attn/to_q/kernel", (4, 128, 128), P("pipeline", "fsdp", "tensor")),
        ("blocks/each/attn/add_k_proj/bias", (4, 128), P("pipeline", "tensor")),
        ("blocks/each/attn/to_out/kernel", (4, 128, 128), P("pipeline", "tensor", "fsdp")),
        ("blocks/each/attn/to_out/bias", (4, 128), P("pipeline")),
        ("blocks/each/ff/widen/kernel", (4, 128, 512), P("pipeline", "fsdp", "tensor")),
        ("blocks/each/ff/narrow/kernel", (4, 512, 128), P("pipeline", "tensor", "fsdp")),
        ("blocks/each/norm1/linear/kernel", (4, 128, 768), P("pipeline", None, "fsdp")),
        # Not a block's: a patch's, although it is called so.
        ("pos_embed/narrow/kernel", (768, 128), P("fsdp")),
        # The axis of the blocks is not for fsdp, even if it is the longest.
        ("blocks/each/norm1/linear/kernel", (1025, 128, 130), P(None, None, "fsdp")),
    ],
)
def test_the_table(path, shape, spec):
    assert rows_of(Mesh(pipeline=2, fsdp=2, tensor=2), {path: shape}, heads=4)[path].spec == spec


def test_what_an_axis_does_not_divide_is_copied_and_said():
    """Six heads of 64 over four devices: the width would split, the heads do not."""
    mesh, path = Mesh(data=1, pipeline=2, tensor=4), "each/to_q/kernel"
    row = rows_of(mesh, {path: (3, 384, 384)}, heads=6)[path]
    assert row.spec == P()
    assert row.copied == ("pipeline=2 does not divide 3 blocks", "tensor=4 does not divide 6 heads")
    assert rows_of(mesh, {path: (4, 384, 384)}, heads=8)[path].spec == P("pipeline", None, "tensor")
    line = summary([row])
    assert (
        line.startswith("0 of 1 arrays are split, 0.0% of the values") and "tensor=4 does not divide 6 heads: 1" in line
    )


@pytest.mark.parametrize("name", [*TRANSFORMERS, *UNETS])
def test_optimizer_and_average_lie_as_the_parameters_do(name):
    trainer = assemble(run_of((TRANSFORMERS | UNETS)[name], Mesh(pipeline=2, fsdp=2, tensor=2)), 3)
    lie = lambda tree: jax.tree.map(lambda leaf: leaf.sharding, tree)
    state = trainer.abstract
    adam = state.opt_state[1][0]
    assert lie(state.params) == lie(state.ema) == lie(adam.mu) == lie(adam.nu)
    rows = trainer.layout()
    assert [P(*row.spec) for row in rows] == [leaf.sharding.spec for leaf in jax.tree.leaves(state.params)]
    # Every array that is copied along fsdp says why.
    assert all("fsdp" in row.spec or row.copied for row in rows)
    values = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    split = sum(leaf.size for leaf in jax.tree.leaves(state.params) if "fsdp" in leaf.sharding.spec)
    assert split > 0.85 * values


def test_a_state_is_sharded_as_reported():
    mesh = Mesh(fsdp=2).build()
    abstract = {"a": jax.ShapeDtypeStruct((256, 128), jnp.float32), "b": [jax.ShapeDtypeStruct((3,), jnp.float32)]}
    assert [s.spec for s in jax.tree.leaves(state_sharding(mesh, abstract))] == [P("fsdp"), P()]
