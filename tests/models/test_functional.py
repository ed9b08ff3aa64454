"""An NNX module as two pure functions: what is refused, what comes out, and that it composes with jax transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jdiff.models import functional


class Scale(nnx.Module):
    """raw = a * x + b_0 + b_1, with a list of modules inside."""

    def __init__(self, rngs: nnx.Rngs):
        self.a = nnx.Param(jax.random.normal(rngs(), (3,)))
        self.shifts = nnx.List([Shift(float(i)) for i in (1, 2)])

    def __call__(self, x, noise_label, cond):
        x = x * self.a[...]
        for shift in self.shifts:
            x = shift(x)
        return x


class Shift(nnx.Module):
    def __init__(self, value: float):
        self.b = nnx.Param(jnp.full((), value))

    def __call__(self, x):
        return x + self.b[...]


class Normalized(Scale):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)


class Streaming(Scale):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))


X = jnp.arange(24.0).reshape(2, 2, 2, 3)
LABEL = jnp.zeros(2)


def test_parameters_are_plain_nested_dicts_with_string_keys():
    params = functional(Scale).init(jax.random.key(0))
    assert {k: type(v) for k, v in params.items()} == {"a": type(X), "shifts": dict}
    assert sorted(params["shifts"]) == ["0", "1"]
    assert [float(params["shifts"][i]["b"]) for i in "01"] == [1.0, 2.0]


def test_apply_uses_the_parameters_it_is_given_and_not_the_initial_ones():
    network = functional(Scale)
    params = {"a": jnp.array([1.0, 2.0, 3.0]), "shifts": {"0": {"b": jnp.array(10.0)}, "1": {"b": jnp.array(-4.0)}}}
    np.testing.assert_allclose(network.apply(params, X, LABEL, {}), X * jnp.array([1.0, 2.0, 3.0]) + 6.0)


def test_init_depends_on_the_key_alone():
    network = functional(Scale)
    first, again, other = (network.init(jax.random.key(seed))["a"] for seed in (0, 0, 1))
    assert jnp.array_equal(first, again)
    assert not jnp.allclose(first, other)


def test_init_under_vmap_gives_the_parameters_of_each_key():
    network = functional(Scale)
    keys = jax.random.split(jax.random.key(3), 4)
    stacked = jax.vmap(network.init)(keys)
    assert jnp.array_equal(stacked["a"][2], network.init(keys[2])["a"])


def test_gradient_has_the_structure_of_the_parameters():
    network = functional(Scale)
    params = network.init(jax.random.key(0))
    gradient = jax.grad(lambda p: network.apply(p, X, LABEL, {}).sum())(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    np.testing.assert_allclose(gradient["a"], X.sum((0, 1, 2)))
    np.testing.assert_allclose(gradient["shifts"]["1"]["b"], X.size)


@pytest.mark.parametrize("make, named", [(Normalized, "norm/mean"), (Streaming, "dropout/rngs")])
def test_state_other_than_parameters_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        functional(make)


def test_dropout_without_its_own_stream_is_not_state():
    class Dropping(Scale):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.dropout = nnx.Dropout(0.5)

    assert functional(Dropping).init(jax.random.key(0)).keys() == {"a", "shifts"}


def test_wrong_parameters_are_refused_by_name():
    network = functional(Scale)
    params = network.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"missing \['a'\], unknown \['c'\]"):
        network.apply({"c": params["a"], "shifts": params["shifts"]}, X, LABEL, {})
    with pytest.raises(ValueError, match=r"a \(1,\) instead of \(3,\)"):
        network.apply(params | {"a": jnp.ones(1)}, X, LABEL, {})
