"""Values as arguments of compiled functions: classes are told apart, static fields are part of the structure."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from jdiff.samplers import DEIS, SOLVERS
from tests.table import PROCESSES, TARGETS

VALUES = [*PROCESSES.values(), *SOLVERS.values(), *(make(jnp.float32) for make in TARGETS.values())]
structure = jax.tree.structure


def test_values_of_different_classes_have_different_structures():
    """Where two compare as equal, a function compiled for one may run for the other, and nothing says so."""
    for one, other in itertools.combinations(VALUES, 2):
        if type(one) is not type(other):
            assert structure(one) != structure(other), (one, other)


def test_structures_of_one_class_differ_in_static_fields_alone():
    assert structure(DEIS(variable="t")) == structure(DEIS(variable="t"))
    assert structure(DEIS(variable="t")) != structure(DEIS(variable="rho"))
    assert len({structure(value) for value in VALUES if type(value) is DEIS}) == 3


@pytest.mark.parametrize("name", SOLVERS)
def test_a_value_comes_back_from_its_leaves(name):
    leaves, treedef = jax.tree.flatten(SOLVERS[name])
    assert jax.tree.unflatten(treedef, leaves) == SOLVERS[name]
