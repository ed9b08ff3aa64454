"""Searched grids: less error on other starts and another target, consistent weights, files, and errors."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.prediction import Prediction
from jdiff.processes import VP
from jdiff.samplers import SOLVERS, Euler, integrate, karras, load_grid, log_snr, search, uniform
from tests.samplers.tools import SMOOTH, SMOOTH_TARGETS, exact_end, grid_between, keys_of


@pytest.fixture
def plain_x64():
    """float64 without strict promotion, which optax does not keep to."""
    with jax.enable_x64(True):
        yield


PROCESS = dataclasses.replace(SMOOTH["vp"][0], t_min=0.05)
STEPS = 6


def fine_end(target, x):
    grid = uniform(PROCESS, 1001, jnp.float64)
    return jax.jit(lambda: integrate(keys_of(len(x)), x, target.denoiser(PROCESS), PROCESS, SOLVERS["heun"], grid))()


def starts(seed):
    return jax.random.normal(jax.random.key(seed), (64, 2), jnp.float64)


@functools.cache
def found(weights):
    target, told = SMOOTH_TARGETS["mixture"](), []
    x = starts(0)
    grids = [log_snr(PROCESS, STEPS + 1, jnp.float64), uniform(PROCESS, STEPS + 1, jnp.float64)]
    result = search(
        keys_of(64),
        target.denoiser(PROCESS),
        PROCESS,
        SOLVERS["dpmpp_2m"],
        "dpmpp_2m",
        x,
        fine_end(target, x),
        grids,
        weights=weights,
        iterations=300,
        report=lambda step, error: told.append((step, error)),
    )
    return result, told


@pytest.mark.usefixtures("plain_x64")
@pytest.mark.parametrize("weights", [False, True])
def test_a_searched_grid_beats_the_standard_ones_on_other_starts_and_another_target(weights):
    result, _ = found(weights)
    for target_name, most in [("mixture", 0.5), ("gaussian", 0.7)]:
        target, x = SMOOTH_TARGETS[target_name](), starts(1)
        exact, solver = fine_end(target, x), SOLVERS["dpmpp_2m"]
        error = lambda solver, grid, target=target, x=x, exact=exact: np.sqrt(
            np.mean((integrate(keys_of(64), x, target.denoiser(PROCESS), PROCESS, solver, grid) - exact) ** 2)
        )
        standard = min(
            error(solver, grid(PROCESS, STEPS + 1, dtype=jnp.float64)) for grid in (log_snr, karras, uniform)
        )
        got = error(result.method(solver), result(PROCESS, STEPS + 1, jnp.float64))
        assert got < most * standard, (target_name, got, standard)


@pytest.mark.usefixtures("plain_x64")
def test_the_error_is_reported_as_it_falls():
    _, told = found(True)
    errors = [error for step, error in told if step >= 30]
    assert all(later <= earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < errors[0] and told[-1][0] == 330


@pytest.mark.usefixtures("plain_x64")
def test_searched_weights_are_exact_for_constant_data():
    result, _ = found(True)
    x0 = jnp.array([[0.3, -0.7]])
    denoise = lambda x, t: Prediction(x0 + 0 * x, (x - PROCESS.alpha(t) * x0) / PROCESS.sigma(t))
    grid = result(PROCESS, STEPS + 1, jnp.float64)
    x = jnp.array([[1.1, 0.4]])
    end = integrate(keys_of(1), x, denoise, PROCESS, result.method(SOLVERS["dpmpp_2m"]), grid)
    eps = (x - PROCESS.alpha(grid[0]) * x0) / PROCESS.sigma(grid[0])
    np.testing.assert_allclose(end, PROCESS.perturb(x0, eps, grid[-1]), rtol=1e-10)


@pytest.mark.usefixtures("plain_x64")
def test_files_come_back_to_the_bit(tmp_path):
    result, _ = found(True)
    path = tmp_path / "new" / "grid.json"
    result.save(path)
    assert load_grid(path) == result
    assert [file.name for file in path.parent.iterdir()] == ["grid.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"times": [1]}', '{"process": "", "solver": "", "times": [1]}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "grid.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"grid\.json is not a searched grid"):
        load_grid(path)


@pytest.mark.usefixtures("plain_x64")
def test_what_does_not_fit_is_named():
    result, _ = found(True)
    with pytest.raises(ValueError, match=r"searched for VP\(.*t_min=0\.05\), got VP\(.*t_min=0\.001\)"):
        result(VP(), STEPS + 1)
    with pytest.raises(ValueError, match="has 7 times, got n = 8"):
        result(PROCESS, STEPS + 2)
    with pytest.raises(ValueError, match="for a grid of 7 times, got 9"):
        method = result.method(SOLVERS["dpmpp_2m"])
        method.plan(PROCESS, uniform(PROCESS, 9))
    x, exact = exact_end("vp", "gaussian")
    run = functools.partial(search, keys_of(32), None, PROCESS, iterations=1)
    grid = grid_between(*SMOOTH["vp"], 4)
    with pytest.raises(ValueError, match=r"one length, got \[5, 6\]"):
        run(SOLVERS["dpmpp_2m"], "", x, exact, [grid, grid_between(*SMOOTH["vp"], 5)], weights=False)
    with pytest.raises(ValueError, match=r"linear multistep method, got Euler\(\)"):
        run(Euler(), "", x, exact, [grid], weights=True)
