"""The digest of arrays: of their bits alone, and not of how they are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jdiff.train.digest import digest

TREE = {
    "a": jnp.asarray(np.random.default_rng(0).normal(size=(16, 24)), jnp.float32),
    "b": jnp.asarray(np.random.default_rng(1).normal(size=40), jnp.bfloat16),
    "c": jnp.arange(8, dtype=jnp.int32),
    "d": jnp.uint32(7),
}


@pytest.mark.parametrize("spec", [("x", None), (None, "x"), ("x", "y"), ("y", "x")], ids=str)
def test_it_does_not_depend_on_the_mesh(spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    split = jax.device_put(TREE["a"], NamedSharding(mesh, PartitionSpec(*spec)))
    assert digest(TREE | {"a": split}) == digest(TREE)


@pytest.mark.parametrize("name", TREE)
@pytest.mark.parametrize("bit", [0, 4, 7])
def test_every_single_bit_counts(name, bit):
    data = np.array(TREE[name])
    words = np.atleast_1d(data).view(np.uint8).reshape(-1)
    seen = [digest(TREE)]
    places = range(0, len(words), max(len(words) // 5, 1))
    for place in places:
        words[place] ^= 1 << bit
        seen.append(digest(TREE | {name: jnp.asarray(np.atleast_1d(data).reshape(data.shape))}))
        words[place] ^= 1 << bit
    assert len(set(seen)) == 1 + len(places) > 4


def test_order_and_place_count():
    flipped = TREE | {"a": TREE["a"][::-1], "c": TREE["c"][::-1]}
    assert digest(flipped) != digest(TREE)
    assert digest({"a": TREE["a"], "b": TREE["a"] + 1}) != digest({"a": TREE["a"] + 1, "b": TREE["a"]})
