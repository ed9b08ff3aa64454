"""Keys by name and by identity: equal to the bit where they should be, and unrelated elsewhere."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from jdiff import rng


def words(keys):
    return np.asarray(jax.random.key_data(keys))


def test_keys_differ_by_name_number_and_index():
    key = jax.random.key(0)
    keys = [key, jax.random.key(1)]
    keys += [rng.named(key, name) for name in ("time", "noise", "prior", "solver", "sample", "nois", "noise ")]
    keys += [rng.numbered(key, number) for number in range(20)]
    keys += list(rng.per_example(rng.named(key, "noise"), jnp.arange(20)))
    keys += [rng.numbered(rng.named(key, "noise"), 20), rng.named(rng.numbered(key, 20), "noise")]
    for one, other in itertools.combinations(keys, 2):
        assert (words(one) != words(other)).any()


@pytest.mark.parametrize("derive", [lambda k: rng.named(k, "noise"), lambda k: rng.numbered(k, 7)])
def test_an_array_of_keys_is_each_of_them(derive):
    keys = rng.per_example(jax.random.key(2), jnp.arange(5))
    derived = derive(keys)
    assert derived.shape == (5,)
    for one, alone in zip(derived, keys, strict=True):
        np.testing.assert_array_equal(words(one), words(derive(alone)))


def test_a_number_may_be_traced():
    key = jax.random.key(0)
    traces = []

    @jax.jit
    def run(number):
        traces.append(1)
        return jax.random.key_data(rng.numbered(key, number))

    np.testing.assert_array_equal(run(3), words(rng.numbered(key, 3)))
    np.testing.assert_array_equal(run(4), words(rng.numbered(key, 4)))
    assert len(traces) == 1


def test_noise_of_an_example_is_the_same_in_any_batch():
    def draw(index, dtype=jnp.float32):
        return rng.normal(rng.per_example(jax.random.key(3), index), jnp.ones((len(index), 4, 2), dtype))

    many = draw(jnp.arange(32))
    for index in ([17], [31, 0, 17]):
        np.testing.assert_array_equal(jax.jit(draw)(jnp.array(index)), many[jnp.array(index)])
    assert draw(jnp.array([1]), jnp.bfloat16).dtype == jnp.bfloat16


def test_noise_is_standard_normal_and_uncorrelated_between_names_and_neighbours():
    keys = rng.per_example(jax.random.key(4), jnp.arange(5000))
    draws = [rng.normal(rng.named(keys, name), jnp.zeros((5000, 4))) for name in ("noise", "time")]
    assert kstest(np.ravel(draws[0]), "norm").pvalue > 1e-3
    noise, other = (np.asarray(draw, float) for draw in draws)
    bound = 4 / np.sqrt(noise.size)
    assert abs(np.mean(noise * other)) < bound
    assert abs(np.mean(noise[1:] * noise[:-1])) < bound
    assert abs(np.mean(noise[:, 1:] * noise[:, :-1])) < bound * np.sqrt(4 / 3)


def test_a_name_means_the_same_key_in_every_process():
    """Python's own hash of a string would not: it changes with PYTHONHASHSEED."""
    code = (
        "import jax; from jdiff import rng; print(jax.random.key_data(rng.named(jax.random.key(5), 'noise')).tolist())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == str(words(rng.named(jax.random.key(5), "noise")).tolist())
