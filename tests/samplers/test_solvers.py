"""Every solver, through one table: measured order, moments, strong order, evaluations, noise and compilations."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import rng
from jdiff.lab import gaussian_moments, path_errors
from jdiff.prediction import Prediction
from jdiff.processes import VP
from jdiff.samplers import (
    SOLVERS,
    AnnealedLangevin,
    integrate,
    karras,
    sample,
    uniform,
)
from tests.samplers.tools import (
    DISTINCT,
    FROM_NOISE,
    ODE,
    SDE,
    SMOOTH,
    SMOOTH_TARGETS,
    OneOf,
    even_grid,
    exact_end,
    grid_between,
    keys_of,
    marginal,
    measured_order,
    moments_at_the_end,
    runner,
    starts,
    through,
)
from tests.table import NEED_SIGNAL, PARAMETERIZATIONS, PROCESSES, anisotropic

# Steps at which a solver is in its asymptotic regime, where they are not the usual ones, and why.
STEPS: dict[str, tuple[int, ...]] = {
    # Its error of second order is 4e-6 at 256 steps, and that of fourth order is not yet below it.
    "seeds_2": (256, 512, 1024),
    # With the little noise that its phi leaves, the error of second order takes over late.
    "er_sde_3": (4096, 8192, 16384),
    # At the usual steps its error of sixth order counts, too: 5.3 there.
    "unipc4": (192, 384, 768),
    "unipc5_eps": (384, 448, 512),
    # Its terms of second and third order have opposite signs.
    "deis_logrho3": (512, 1024, 2048),
}
# Where it is measured, if not over SMOOTH["vp"].
SPAN = dict.fromkeys(("lms", "deis_tab3", "deis_logrho3"), "vp_from_noise") | {"unipc5_eps": "vp_from_more_noise"}
USUAL = (64, 128, 256)
# What rounding does to a sample in float32, where it is more than 1e-4: its weights are far greater than their sum.
ROUNDING = {"unipc5_eps": 1e-3}
# The same for paths. The local slope of SEEDS-3 in noise prediction is 1.4 at 16 steps, 1.2 at 32 and 1.1 from 64 on.
PATH_STEPS: dict[str, tuple[int, ...]] = {"seeds_3": (64, 128, 256)}
USUAL_PATH = (32, 64, 128)
# Six is not reached on the Gaussian in float64: at 1e-12, the terms above the sixth order still count.
TO_ROUNDING = ("unipc5_eps", "gaussian")
NO_SIGNAL = {name for name, process in PROCESSES.items() if process.alpha(process.time_span[1]) == 0}


def end_errors(name, target_name, steps):
    span, target = SPAN.get(name, "vp"), SMOOTH_TARGETS[target_name]()
    (process, start), (x, exact) = (SMOOTH | FROM_NOISE)[span], exact_end(span, target_name)
    ends = [runner(ODE[name])(process, target, x, grid_between(process, start, n)) for n in steps]
    return [np.sqrt(np.mean((end - exact) ** 2)) for end in ends]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "target_name"), [case for case in itertools.product(ODE, SMOOTH_TARGETS) if case != TO_ROUNDING]
)
def test_order_of_ode_solvers(name, target_name):
    steps = STEPS.get(name, USUAL)
    errors = end_errors(name, target_name, steps)
    assert measured_order(steps, errors) == pytest.approx(ODE[name].order, abs=0.2), errors


@pytest.mark.usefixtures("x64")
def test_an_order_falls_to_the_documented_one_until_rounding_is_left():
    steps = (256, 384, 512, 768)
    orders = -np.diff(np.log(end_errors(*TO_ROUNDING, steps))) / np.diff(np.log(steps))
    order = ODE[TO_ROUNDING[0]].order
    assert (np.diff(orders) < 0).all() and order < orders[-1] < order + 0.5, orders


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [name for name, solver in SDE.items() if solver.order])
def test_weak_order_of_sde_solvers(name):
    """Of the moments of a Gaussian target, exactly, from the true marginal.

    Order 0 is a bias that stays, whatever the number of steps: test_langevin.py has its closed form.
    """
    (process, start), target, steps, errors = SMOOTH["vp"], anisotropic(), STEPS.get(name, USUAL), []
    exact_mean, exact_covariance = marginal(process, process.time_span[0], target)
    for n in steps:
        mean, covariance = moments_at_the_end(SDE[name])(process, target, grid_between(process, start, n))
        errors.append(np.linalg.norm(mean - exact_mean) + np.linalg.norm(covariance - exact_covariance))
    assert measured_order(steps, errors) == pytest.approx(SDE[name].order, abs=0.2), errors


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("target_name", SMOOTH_TARGETS)
@pytest.mark.parametrize("name", [name for name, solver in SDE.items() if solver.strong_order])
def test_strong_order_of_sde_solvers(name, target_name):
    """Against itself on a grid eight times finer than the finest, driven by the same Brownian paths."""
    (process, start), target, steps = SMOOTH["vp"], SMOOTH_TARGETS[target_name](), PATH_STEPS.get(name, USUAL_PATH)
    errors = path_errors(SDE[name], process, target, lambda n: grid_between(process, start, n), steps)
    assert measured_order(steps, errors) == pytest.approx(SDE[name].strong_order, abs=0.2), errors


def through_all(process, target, number):
    return through(target, process, PARAMETERIZATIONS, number)


@functools.cache
def grid_and_marginal(process_name):
    """A grid over the whole span, and the exact moments at its end: the same for every solver."""
    process = PROCESSES[process_name]
    return even_grid(process, 65), marginal(process, process.time_span[0], anisotropic())


def check_moments(name, run, process_name, parameterization):
    """run(grid) gives mean and covariance at t_min of a Gaussian target, from the true marginal at t_max."""
    tolerance = 0.15 if SOLVERS[name].order <= 1 else 0.02
    grid, exact = grid_and_marginal(process_name)
    for value, expected in zip(run(grid), exact, strict=True):
        message = f"{name}, {process_name}, {parameterization}"
        np.testing.assert_allclose(value, expected, atol=tolerance, err_msg=message)


def fitting(name, process_name):
    """The parameterizations that the solver and the process can go with."""
    if process_name not in NO_SIGNAL:
        return list(PARAMETERIZATIONS)
    return [] if SOLVERS[name].needs_signal else [other for other in PARAMETERIZATIONS if other not in NEED_SIGNAL]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", DISTINCT)
def test_moments(name):
    """Of one process through one parameterization, in turn; of all of them in the next test."""
    place = list(DISTINCT).index(name)
    fit = [(process, others) for process in PROCESSES if (others := fitting(name, process))]
    process_name, others = fit[place % len(fit)]
    one = others[place % len(others)]
    said = {one: PARAMETERIZATIONS[one]}
    exact = lambda process, target, number: through(target, process, said, 0)
    run = functools.partial(gaussian_moments(SOLVERS[name], exact), PROCESSES[process_name], anisotropic())
    check_moments(name, run, process_name, one)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", DISTINCT)
def test_moments_through_every_process_and_parameterization(name):
    run, target = moments_at_the_end(SOLVERS[name], through_all), anisotropic()
    for number, process_name in enumerate(PROCESSES):
        process = OneOf(jnp.asarray(number), tuple(PROCESSES.values()))
        for other in fitting(name, process_name):
            place = jnp.asarray(list(PARAMETERIZATIONS).index(other))
            check_moments(name, lambda grid, p=process, n=place: run(p, target, grid, n), process_name, other)


@pytest.mark.parametrize("name", DISTINCT)
def test_evaluations_are_as_documented(name):
    solver, calls, process = SOLVERS[name], [], VP()

    def denoise(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return Prediction(0.1 * x, x)

    jax.jit(lambda: sample(keys_of(2), denoise, process, solver, karras(process, 8), (2,)))()
    jax.effects_barrier()
    assert len(calls) == solver.nfe(7) + 1


@pytest.mark.parametrize("name", DISTINCT)
def test_new_values_compile_nothing(name):
    """Nor does a sample depend on its batch: the value to rounding, the prior's draw to the bit."""
    solver, target, traces = SOLVERS[name], anisotropic(jnp.float32), []

    def draw(process, key, index, grid):
        traces.append(1)
        keys = rng.per_example(key, index)
        return sample(keys, target.denoiser(process), process, solver, grid, (2,), trajectory=True)

    run = jax.jit(draw)
    among, among_path = run(VP(), jax.random.key(3), jnp.arange(64), karras(VP(), 10))
    other, _ = run(VP(beta_max=15.0), jax.random.key(1), jnp.arange(64) + 5, uniform(VP(), 10))
    assert len(traces) == 1
    assert not np.allclose(among, other)
    alone, alone_path = run(VP(), jax.random.key(3), jnp.array([17]), karras(VP(), 10))
    np.testing.assert_array_equal(alone_path[0, 0], among_path[0, 17])
    np.testing.assert_allclose(alone[0], among[17], rtol=ROUNDING.get(name, 1e-4), atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", DISTINCT)
def test_a_step_goes_on_from_the_state_that_the_prediction_describes(name):
    """The hook of CFG++: a prediction of another state does what starting in that state does.

    The denoiser says the same data about every x, so that x is only carried along. Churn evaluates first where it has
    added noise, with x / alpha as it was. Each Langevin step at a level is a step of its own: here there is one.
    """
    solver, process = {"annealed_langevin": AnnealedLangevin(corrections=1)}.get(name, SOLVERS[name]), VP()
    grid, shift = jnp.array([0.6, 0.5]), jnp.array([[0.3, -0.2], [0.1, 0.4]])
    x = jax.random.normal(jax.random.key(0), (2, 2))

    def consistent(x, t):
        x0 = jnp.broadcast_to(jnp.asarray([0.5, -0.1]), x.shape)
        return Prediction(x0, (x - process.alpha(t) * x0) / process.sigma(t))

    def moved(x, t):
        exact = consistent(x, t)
        carried = shift * process.alpha(t) / process.alpha(grid[0])
        return Prediction(exact.x0, exact.eps + jnp.where(t >= grid[0], carried / process.sigma(t), 0))

    run = lambda denoise, x: integrate(keys_of(2), x, denoise, process, solver, grid)
    np.testing.assert_allclose(run(moved, x), run(consistent, x + shift), rtol=1e-9)


@pytest.mark.parametrize("name", SDE)
def test_the_noise_of_a_step_does_not_depend_on_the_batch(name):
    """To the bit: from zero, with data of zero, a step is its noise times a number."""
    solver, process = SDE[name], VP()
    nothing = lambda x, t: Prediction(jnp.zeros_like(x), x / process.sigma(t))

    def step(index):
        keys = rng.per_example(jax.random.key(3), index)
        return integrate(keys, jnp.zeros((len(index), 5)), nothing, process, solver, jnp.float32([0.6, 0.05]))

    among = step(jnp.arange(64))
    np.testing.assert_array_equal(step(jnp.array([17]))[0], among[17])
    assert len(np.unique(among)) > 300


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ODE)
def test_inversion_comes_back(name):
    """A deterministic method runs towards more noise over the same grid turned round."""
    (process, start), target, solver = SMOOTH["vp"], SMOOTH_TARGETS["mixture"](), ODE[name]
    x, grid = starts(process, process.time_span[0], target, 32), grid_between(process, start, 256)
    there = runner(solver)(process, target, x, grid[::-1])
    back = runner(solver)(process, target, there, grid)
    np.testing.assert_allclose(back, x, atol=0.02)
