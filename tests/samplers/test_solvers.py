"""Every solver, through one table: measured order, end points, moments, evaluations and compilations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from jdiff import oracles, rng
from jdiff.prediction import Prediction
from jdiff.processes import EDM, VP, RectifiedFlow
from jdiff.samplers import DDIM, DDPM, SOLVERS, DPMpp2M, Euler, Heun, karras, sample, uniform
from tests.table import PROCESSES, TARGETS, anisotropic

ODE = {"ddim": DDIM(), "euler": Euler(), "heun": Heun(), "dpmpp_2m": DPMpp2M()}
SDE = {"ddpm": DDPM(), "ddpm_beta": DDPM(variance="beta"), "ddim_1": DDIM(eta=1.0), "ddim_half": DDIM(eta=0.5)}
# Spans over which a few dozen steps are in the asymptotic regime.
SMOOTH = {
    "vp": (VP(t_min=0.05), 0.9),
    "edm": (EDM(sigma_min=0.1, sigma_max=4.0), 4.0),
    "flow": (RectifiedFlow(t_min=0.05), 0.9),
}


def test_every_solver_is_in_the_tables():
    assert {type(solver) for solver in (ODE | SDE).values()} == set(SOLVERS.values())


def grid_between(process, start, n):
    """Equal steps in log-SNR from `start` to t_min, float64."""
    ends = process.log_snr(jnp.array([start, process.time_span[0]]))
    return process.time(jnp.linspace(ends[0], ends[1], n + 1))


def exact_end(target, process, x, start, end):
    """The probability-flow ODE's end point by an adaptive integrator of order 8."""
    velocity = jax.jit(lambda t, x: target.predict(process, x.reshape(-1, 2), t).velocity(process, t).ravel())
    path = solve_ivp(velocity, (start, end), np.ravel(x), method="DOP853", rtol=1e-11, atol=1e-12)
    return path.y[:, -1].reshape(-1, 2)


def measured_order(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", SMOOTH)
@pytest.mark.parametrize("target_name", TARGETS)
@pytest.mark.parametrize("name", ODE)
def test_order_of_ode_solvers(name, target_name, process_name):
    (process, start), target, solver = SMOOTH[process_name], TARGETS[target_name](), ODE[name]
    keys = rng.per_example(jax.random.key(0), jnp.arange(32))
    run = jax.jit(
        lambda grid: sample(
            keys, target.denoiser(process), process, solver, grid, (2,), denoise_last=False, trajectory=True
        )
    )
    steps, errors = [32, 64, 128], []
    for n in steps:
        end, path = run(grid_between(process, start, n))
        if not errors:
            exact = exact_end(target, process, path[0], start, process.time_span[0])
        errors.append(np.sqrt(np.mean((end - exact) ** 2)))
    assert measured_order(steps, errors) == pytest.approx(solver.order, abs=0.2), errors


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ODE)
@pytest.mark.parametrize("process_name", PROCESSES)
def test_end_points_match_the_closed_form(name, process_name):
    """From the prior to t_min, over the process's whole span."""
    process, target, solver = PROCESSES[process_name], anisotropic(), ODE[name]
    keys = rng.per_example(jax.random.key(0), jnp.arange(16))
    n = 200 if solver.order == 2 else 1000
    grid = uniform(process, n, jnp.float64) if process_name == "flow" else karras(process, n, dtype=jnp.float64)
    run = jax.jit(
        lambda grid: sample(
            keys, target.denoiser(process), process, solver, grid, (2,), denoise_last=False, trajectory=True
        )
    )
    end, path = run(grid)
    exact = oracles.gaussian_flow(target, process, path[0], process.time_span[1], process.time_span[0])
    np.testing.assert_allclose(end, exact, atol={1: 2e-2, 2: 2e-3}[solver.order])


def many(target, process, solver, grid):
    """Samples [64 * 256, 2]: each key draws 256 independent points."""

    def denoise(x, t):
        prediction = target.predict(process, x.reshape(-1, 2), t)
        return jax.tree.map(lambda part: part.reshape(x.shape), prediction)

    keys = rng.per_example(jax.random.key(5), jnp.arange(64))
    return np.asarray(jax.jit(lambda: sample(keys, denoise, process, solver, grid, (256, 2)))()).reshape(-1, 2)


def affine_step(solver, denoise, process, t, s):
    """A step on a Gaussian target is x_s = A x + b + c z: A [2, 2], b [2] and c, read off the step itself."""
    probes = jnp.concatenate([jnp.zeros((2, 2)), jnp.eye(2)])
    keys = rng.per_example(jax.random.key(0), jnp.array([0, 1, 0, 0]))
    out, _ = solver.step(denoise, process, probes, solver.init(probes), t, s, keys)
    z = rng.normal(keys, probes)
    c = (out[1] - out[0]) / (z[1] - z[0])
    return (out[2:] - out[0]).T, out[0] - c * z[0], c


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SDE)
@pytest.mark.parametrize("process_name", ["vp", "edm", "flow"])
def test_weak_order_of_sde_solvers(process_name, name):
    """The moments of a Gaussian target, carried exactly through the steps from the true marginal."""
    (process, start), target, solver = SMOOTH[process_name], anisotropic(), SDE[name]
    mean, covariance = target.moments()
    marginal = lambda t: (
        process.alpha(t) * mean,
        process.alpha(t) ** 2 * covariance + process.sigma(t) ** 2 * np.eye(2),
    )
    steps_of = jax.jit(jax.vmap(lambda t, s: affine_step(solver, target.denoiser(process), process, t, s)))
    steps, errors = [64, 128, 256], []
    for n in steps:
        grid = grid_between(process, start, n)
        m, v = marginal(grid[0])
        for a, b, c in zip(*map(np.asarray, steps_of(grid[:-1], grid[1:])), strict=True):
            m, v = a @ m + b, a @ v @ a.T + np.diag(c**2)
        exact_m, exact_v = marginal(grid[-1])
        errors.append(np.linalg.norm(m - exact_m) + np.linalg.norm(v - exact_v))
    assert measured_order(steps, errors) == pytest.approx(solver.order, abs=0.2), errors


@pytest.mark.usefixtures("x64")
# The forward step's variance says nothing from a time without signal: that pair is left out.
@pytest.mark.parametrize(
    ("name", "process_name"), [(n, p) for n in ODE | SDE for p in PROCESSES if (n, p) != ("ddpm_beta", "flow")]
)
def test_moments(name, process_name):
    """Mean and covariance of the data, within the discretization error of 64 or 256 steps plus four standard errors."""
    process, target, solver = PROCESSES[process_name], anisotropic(), (ODE | SDE)[name]
    n = 256 if solver.order == 1 else 64
    grid = uniform(process, n, jnp.float64) if process_name == "flow" else karras(process, n, dtype=jnp.float64)
    draws = many(target, process, solver, grid)
    mean, covariance = target.moments()
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.01 + 4 * np.sqrt(0.7 / len(draws)))
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.02 + 4 * 0.7 * np.sqrt(2 / len(draws)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", SMOOTH)
def test_an_euler_step_follows_the_tangent(process_name):
    """Song et al. 2021, eq. 13, at the step's start; a slope taken at its end would be of order 1, too."""
    (process, t), target = SMOOTH[process_name], TARGETS["mixture"]()
    x, keys = jnp.array([[0.3, -1.1], [0.8, 0.2]]), rng.per_example(jax.random.key(0), jnp.arange(2))
    score = jax.grad(lambda x: target.log_density(process, x, t).sum())(x)
    tangent = process.drift(x, t) - process.diffusion(t) ** 2 / 2 * score
    for s in (0.9 * t, 0.3 * t):
        end, _ = Euler().step(target.denoiser(process), process, x, (), jnp.asarray(t), jnp.asarray(s), keys)
        np.testing.assert_allclose((end - x) / (s - t), tangent, rtol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", SMOOTH)
@pytest.mark.parametrize("name", SDE)
def test_noise_of_one_step_has_the_variance_of_its_name(name, process_name):
    """Order and moments cannot tell the forward step's variance from the posterior's: both are right in the limit."""
    process, start = SMOOTH[process_name]
    t, s = jnp.asarray(start), jnp.asarray(0.4 * start)
    ratio = process.alpha(t) / process.alpha(s)
    forward = process.sigma(t) ** 2 - (ratio * process.sigma(s)) ** 2  # of x_t given x_s
    posterior = 1 / (1 / process.sigma(s) ** 2 + ratio**2 / forward)  # of x_s given x_t and x0: precisions add
    expected = {"ddpm": posterior, "ddpm_beta": forward, "ddim_1": posterior, "ddim_half": posterior / 4}[name]
    _, _, c = affine_step(SDE[name], anisotropic().denoiser(process), process, t, s)
    np.testing.assert_allclose(c**2, [expected] * 2, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_ddim_with_eta_one_is_ancestral_sampling():
    target, process = anisotropic(), VP()
    keys = rng.per_example(jax.random.key(3), jnp.arange(4))
    grid = karras(process, 12, dtype=jnp.float64)
    one, other = (sample(keys, target.denoiser(process), process, s, grid, (2,)) for s in (DDIM(eta=1.0), DDPM()))
    np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("name", ODE | SDE)
def test_evaluations_are_as_documented(name):
    solver, calls = (ODE | SDE)[name], []
    target, process = anisotropic(jnp.float32), VP()

    def denoise(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return target.predict(process, x, t)

    keys = rng.per_example(jax.random.key(0), jnp.arange(2))
    jax.jit(lambda: sample(keys, denoise, process, solver, karras(process, 8), (2,)))()
    jax.effects_barrier()
    assert len(calls) == 7 * solver.nfe_per_step + 1


@pytest.mark.parametrize("name", ODE | SDE)
def test_new_values_compile_nothing(name):
    solver, target, traces = (ODE | SDE)[name], anisotropic(jnp.float32), []

    @jax.jit
    def run(process, solver, key, grid):
        traces.append(1)
        keys = rng.per_example(key, jnp.arange(2))
        return sample(keys, target.denoiser(process), process, solver, grid, (2,))

    first = run(VP(), solver, jax.random.key(0), karras(VP(), 6))
    second = run(VP(beta_max=15.0), solver, jax.random.key(1), uniform(VP(), 6))
    if name.startswith("ddim"):
        run(VP(), dataclasses.replace(solver, eta=0.3), jax.random.key(0), karras(VP(), 6))
    assert len(traces) == 1
    assert not np.allclose(first, second)


@pytest.mark.parametrize("name", ODE | SDE)
def test_a_sample_does_not_depend_on_its_batch(name):
    """The value to rounding; the prior to the bit."""
    solver, process, target = (ODE | SDE)[name], VP(), anisotropic(jnp.float32)
    run = jax.jit(
        lambda index: sample(
            rng.per_example(jax.random.key(3), index),
            target.denoiser(process),
            process,
            solver,
            karras(process, 10),
            (2,),
            trajectory=True,
        )
    )
    alone, alone_path = run(jnp.array([17]))
    among, among_path = run(jnp.arange(64))
    np.testing.assert_array_equal(alone_path[0, 0], among_path[0, 17])
    np.testing.assert_allclose(alone[0], among[17], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SDE)
def test_the_noise_of_a_step_does_not_depend_on_the_batch(name):
    """To the bit: from zero, with a prediction of zero, a step is its noise times a number."""
    solver, process = SDE[name], VP()
    nothing = lambda x, t: Prediction(jnp.zeros_like(x), jnp.zeros_like(x))

    def step(index):
        keys = rng.per_example(jax.random.key(3), index)
        x = jnp.zeros((len(index), 5))
        return solver.step(nothing, process, x, solver.init(x), jnp.float32(0.6), jnp.float32(0.4), keys)[0]

    among = step(jnp.arange(64))
    np.testing.assert_array_equal(step(jnp.array([17]))[0], among[17])
    assert len(np.unique(among)) > 300


def test_noise_is_the_same_on_eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    run = jax.jit(lambda index: rng.normal(rng.per_example(jax.random.key(3), index), jnp.zeros((64, 5, 3))))
    one = run(jnp.arange(64))
    eight = run(jax.device_put(jnp.arange(64), sharding))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(one, eight)


def test_bad_arguments_are_named():
    keys = rng.per_example(jax.random.key(0), jnp.arange(2))
    denoise = anisotropic(jnp.float32).denoiser(VP())
    with pytest.raises(ValueError, match=r"grid must have shape \[n\] with n >= 2, got \(1,\)"):
        sample(keys, denoise, VP(), Euler(), jnp.ones(1), (2,))
    with pytest.raises(ValueError, match=r"one key a sample, got \(\)"):
        sample(jax.random.key(0), denoise, VP(), Euler(), karras(VP(), 4), (2,))
    with pytest.raises(ValueError, match=r"0 <= eta <= 1, got 1\.5"):
        DDIM(eta=1.5)
    with pytest.raises(ValueError, match="'beta_tilde' or 'beta', got 'gamma'"):
        DDPM(variance="gamma")
