"""Every solver, through one table: measured order, moments, strong order, evaluations, noise and compilations."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import rng
from jdiff.lab import gaussian_moments
from jdiff.prediction import Prediction
from jdiff.processes import VP, RectifiedFlow
from jdiff.samplers import (
    DDIM,
    DDPM,
    SOLVERS,
    AnnealedLangevin,
    Euler,
    Noise,
    brownian,
    checked,
    independent,
    integrate,
    karras,
    log_snr,
    sample,
    uniform,
)
from tests.samplers.tools import (
    FAST,
    FROM_NOISE,
    ODE,
    SDE,
    SMOOTH,
    SMOOTH_TARGETS,
    OneOf,
    even_grid,
    exact_end,
    grid_between,
    handed_in,
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
    # With the little noise that its phi leaves, the error of second order takes over beyond 512 steps.
    "er_sde_3": (16, 32, 64),
    # At the usual steps its error of sixth order counts, too: 5.3 there.
    "unipc4": (192, 384, 768),
    # Of order 3, by their first steps, once the sixth is below it.
    "unipc5_eps": (192, 256, 384),
    # Its terms of second and third order have opposite signs.
    "deis_logrho3": (512, 1024, 2048),
}
# Where it is measured, if not over SMOOTH["vp"].
SPAN = dict.fromkeys(("lms", "deis_rhoab3", "ipndm_v", "deis_tab3", "deis_logrho3"), "vp_from_noise")
USUAL = (64, 128, 256)
# What rounding does to a sample in float32, where it is more than 1e-4: its weights are far greater than their sum.
ROUNDING = {"unipc5_eps": 1e-3}
# The same for paths. The local slope of SEEDS-3 in noise prediction is 1.4 at 16 steps, 1.2 at 32 and 1.1 from 64 on.
PATH_STEPS: dict[str, tuple[int, ...]] = {"seeds_3": (64, 128, 256)}
USUAL_PATH = (32, 64, 128)
NO_SIGNAL = {name for name, process in PROCESSES.items() if process.alpha(process.time_span[1]) == 0}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("target_name", SMOOTH_TARGETS)
@pytest.mark.parametrize("name", ODE)
def test_order_of_ode_solvers(name, target_name):
    span, target, steps = SPAN.get(name, "vp"), SMOOTH_TARGETS[target_name](), STEPS.get(name, USUAL)
    (process, start), (x, exact) = (SMOOTH | FROM_NOISE)[span], exact_end(span, target_name)
    ends = [runner(ODE[name])(process, target, x, grid_between(process, start, n)) for n in steps]
    errors = [np.sqrt(np.mean((end - exact) ** 2)) for end in ends]
    assert measured_order(steps, errors) == pytest.approx(ODE[name].order, abs=0.2), errors


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


def refuse(part=0):
    raise AssertionError("a method with a strong order reads its noise off the path")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("target_name", SMOOTH_TARGETS)
@pytest.mark.parametrize("name", [name for name, solver in SDE.items() if solver.strong_order])
def test_strong_order_of_sde_solvers(name, target_name):
    """Against itself on a grid eight times finer than the finest, driven by the same Brownian paths."""
    (process, start), target, solver = SMOOTH["vp"], SMOOTH_TARGETS[target_name](), SDE[name]
    steps, finest, paths, inner = PATH_STEPS.get(name, USUAL_PATH), 1024, 512, 6
    x = starts(process, start, target, paths)
    # The paths' values at the finest grid's times and at sixths of its steps, whose clock is the signal-to-noise ratio.
    clock = jnp.exp(process.log_snr(grid_between(process, start, inner * finest)))
    drawn = jax.random.normal(jax.random.key(1), (inner * finest, paths, 2)) * jnp.sqrt(jnp.diff(clock))[:, None, None]
    path = jnp.concatenate([jnp.zeros((1, paths, 2)), jnp.cumsum(drawn, axis=0)])

    def between(t, s, part=0):
        begin, end = (jnp.argmin(jnp.abs(jnp.log(clock) - process.log_snr(time))) for time in (t, s))
        return (path[end] - path[begin]) / jnp.sqrt(clock[end] - clock[begin])

    source = lambda keys, process, like: lambda number: Noise(between=between, fresh=refuse)
    run = jax.jit(
        lambda grid: integrate(keys_of(paths), x, target.denoiser(process), process, solver, grid, noise=source),
        compiler_options=FAST,
    )
    reference = run(grid_between(process, start, finest))
    ends = [run(grid_between(process, start, n)) for n in steps]
    errors = [np.sqrt(np.mean((end - reference) ** 2)) for end in ends]
    assert measured_order(steps, errors) == pytest.approx(solver.strong_order, abs=0.2), errors


def through_all(process, target, number):
    return through(target, process, PARAMETERIZATIONS, number)


def check_moments(name, run, process_name, parameterization):
    """run(grid) gives mean and covariance at t_min of a Gaussian target, from the true marginal at t_max."""
    process, target = PROCESSES[process_name], anisotropic()
    tolerance = 0.15 if SOLVERS[name].order <= 1 else 0.02
    got, exact = run(even_grid(process, 65)), marginal(process, process.time_span[0], target)
    for value, expected in zip(got, exact, strict=True):
        message = f"{name}, {process_name}, {parameterization}"
        np.testing.assert_allclose(value, expected, atol=tolerance, err_msg=message)


def fitting(name, process_name):
    """The parameterizations that the solver and the process can go with."""
    if process_name not in NO_SIGNAL:
        return list(PARAMETERIZATIONS)
    return [] if SOLVERS[name].needs_signal else [other for other in PARAMETERIZATIONS if other not in NEED_SIGNAL]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SOLVERS)
def test_moments(name):
    """Of three processes, each through one parameterization, in turn; all of them in the next test."""
    place = list(SOLVERS).index(name)
    for turn in range(3):
        process_name = list(PROCESSES)[(place + 4 * turn) % len(PROCESSES)]
        if not (others := fitting(name, process_name)):
            continue
        one = others[(place + turn) % len(others)]
        said = {one: PARAMETERIZATIONS[one]}
        exact = lambda process, target, number, said=said: through(target, process, said, 0)
        run = functools.partial(gaussian_moments(SOLVERS[name], exact, FAST), PROCESSES[process_name], anisotropic())
        check_moments(name, run, process_name, one)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SOLVERS)
def test_moments_through_every_process_and_parameterization(name):
    run = moments_at_the_end(SOLVERS[name], through_all)
    for number, process_name in enumerate(PROCESSES):
        process = OneOf(jnp.asarray(number), tuple(PROCESSES.values()))
        for other in fitting(name, process_name):
            place = jnp.asarray(list(PARAMETERIZATIONS).index(other))
            check_moments(name, lambda grid, p=process, n=place: run(p, anisotropic(), grid, n), process_name, other)


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_as_documented(name):
    solver, calls, process = SOLVERS[name], [], VP()

    def denoise(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return Prediction(0.1 * x, x)

    jax.jit(lambda: sample(keys_of(2), denoise, process, solver, karras(process, 8), (2,)))()
    jax.effects_barrier()
    assert len(calls) == solver.nfe(7) + 1


@pytest.mark.parametrize("name", SOLVERS)
def test_new_values_compile_nothing(name):
    """Nor does a sample depend on its batch: the value to rounding, the prior's draw to the bit."""
    solver, target, traces = SOLVERS[name], anisotropic(jnp.float32), []

    def draw(process, key, index, grid):
        traces.append(1)
        keys = rng.per_example(key, index)
        return sample(keys, target.denoiser(process), process, solver, grid, (2,), trajectory=True)

    run = jax.jit(draw, compiler_options=FAST)
    among, among_path = run(VP(), jax.random.key(3), jnp.arange(64), karras(VP(), 10))
    other, _ = run(VP(beta_max=15.0), jax.random.key(1), jnp.arange(64) + 5, uniform(VP(), 10))
    assert len(traces) == 1
    assert not np.allclose(among, other)
    alone, alone_path = run(VP(), jax.random.key(3), jnp.array([17]), karras(VP(), 10))
    np.testing.assert_array_equal(alone_path[0, 0], among_path[0, 17])
    np.testing.assert_allclose(alone[0], among[17], rtol=ROUNDING.get(name, 1e-4), atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SOLVERS)
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
@pytest.mark.parametrize("process_name", SMOOTH)
def test_an_euler_step_follows_the_tangent(process_name):
    """Song et al. 2021, eq. 13, at the step's start; a slope taken at its end would be of order 1, too."""
    (process, t), target = SMOOTH[process_name], SMOOTH_TARGETS["mixture"]()
    x = jnp.array([[0.3, -1.1], [0.8, 0.2]])
    score = jax.grad(lambda x: target.log_density(process, x, t).sum())(x)
    tangent = process.drift(x, t) - process.diffusion(t) ** 2 / 2 * score
    for s in (0.9 * t, 0.3 * t):
        end = integrate(keys_of(2), x, target.denoiser(process), process, Euler(), jnp.array([t, s]))
        np.testing.assert_allclose((end - x) / (s - t), tangent, rtol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", SMOOTH)
@pytest.mark.parametrize("solver", [DDPM(), DDPM(variance="beta"), DDIM(eta=1.0), DDIM(eta=0.5)], ids=str)
def test_noise_of_one_step_has_the_variance_of_its_name(solver, process_name):
    """Order and moments cannot tell the forward step's variance from the posterior's: both are right in the limit."""
    process, start = SMOOTH[process_name]
    t, s = start, 0.4 * start
    ratio = process.alpha(t) / process.alpha(s)
    forward = process.sigma(t) ** 2 - (ratio * process.sigma(s)) ** 2  # of x_t given x_s
    posterior = 1 / (1 / process.sigma(s) ** 2 + ratio**2 / forward)  # of x_s given x_t and x0: precisions add
    expected = forward if solver == DDPM(variance="beta") else posterior * getattr(solver, "eta", 1.0) ** 2
    denoise, drawn = anisotropic().denoiser(process), jnp.array([0.7, -1.3]).reshape(1, 1, 1, 2)
    run = lambda z: integrate(
        keys_of(1), jnp.zeros((1, 2)), denoise, process, solver, jnp.array([t, s]), noise=handed_in(z, z)
    )
    np.testing.assert_allclose(((run(drawn) - run(0 * drawn)) / drawn[0, 0]) ** 2, [[expected] * 2], rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_ddim_with_eta_one_is_ancestral_sampling():
    target, process, grid = anisotropic(), VP(), karras(VP(), 12, dtype=jnp.float64)
    one, other = (sample(keys_of(4), target.denoiser(process), process, s, grid, (2,)) for s in (DDIM(eta=1.0), DDPM()))
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_noise_is_the_same_on_eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    run = jax.jit(lambda index: rng.normal(rng.per_example(jax.random.key(3), index), jnp.zeros((64, 5, 3))))
    one = run(jnp.arange(64))
    eight = run(jax.device_put(jnp.arange(64), sharding))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(one, eight)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m", "sa_solver", "restart"])
def test_samples_are_the_same_on_eight_devices(name):
    """The prior's draw to the bit, the samples to rounding."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    target, grid = anisotropic(jnp.float32), karras(VP(), 10)

    def draw(index):
        keys = rng.per_example(jax.random.key(3), index)
        return sample(keys, target.denoiser(VP()), VP(), SOLVERS[name], grid, (2,), trajectory=True)

    run = jax.jit(draw, compiler_options=FAST)
    one, one_path = run(jnp.arange(64))
    eight, eight_path = run(jax.device_put(jnp.arange(64), sharding))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(one_path[0], eight_path[0])
    np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_increments_of_a_brownian_path():
    """Standard normal each, independent where they do not overlap, and adding up where they do."""
    process, keys = VP(), keys_of(4096)
    noise = brownian(keys, process, jnp.zeros((4096, 1)))(0)
    times = jnp.array([1.0, 0.8, 0.3, 0.001])
    parts = [noise.between(t, s)[:, 0] for t, s in itertools.pairwise(times)]
    np.testing.assert_allclose(np.cov(parts), np.eye(3), atol=4 * np.sqrt(2 / 4096))
    snr = np.exp(process.log_snr(times))
    whole = sum(np.sqrt(b - a) * part for a, b, part in zip(snr[:-1], snr[1:], parts, strict=True))
    np.testing.assert_allclose(whole / np.sqrt(snr[-1] - snr[0]), noise.between(times[0], times[-1])[:, 0], rtol=1e-6)
    assert not np.array_equal(noise.fresh(), noise.fresh(part=1))


@pytest.mark.usefixtures("x64")
def test_one_brownian_path_gives_one_sample_at_any_number_of_steps():
    process, target = SMOOTH["vp"][0], anisotropic()
    draw = lambda n, noise: sample(
        keys_of(16), target.denoiser(process), process, DDPM(), log_snr(process, n, jnp.float64), (2,), noise=noise
    )
    one, other = draw(129, brownian), draw(65, brownian)
    assert np.sqrt(np.mean((one - other) ** 2)) < 0.05
    assert np.sqrt(np.mean((one - draw(129, independent)) ** 2)) > 0.3


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ODE)
def test_inversion_comes_back(name):
    """A deterministic method runs towards more noise over the same grid turned round."""
    (process, start), target, solver = SMOOTH["vp"], SMOOTH_TARGETS["mixture"](), ODE[name]
    x, grid = starts(process, process.time_span[0], target, 32), grid_between(process, start, 256)
    there = runner(solver)(process, target, x, grid[::-1])
    back = runner(solver)(process, target, there, grid)
    np.testing.assert_allclose(back, x, atol=0.02)


BAD_GRIDS = {
    "rising": ([0.5, 0.7, 0.1], "must decrease from each to the next"),
    "equal": ([0.5, 0.5, 0.1], "must decrease from each to the next"),
    "above": ([1.2, 0.7, 0.1], r"must lie in the span of VP, from 0\.001\d* to 1\.0, got \[1\.2"),
    "below": ([0.9, 0.7, 1e-5], "must lie in the span of VP"),
    "not a number": ([0.9, float("nan"), 0.1], "must decrease"),
}


@pytest.mark.parametrize("kind", BAD_GRIDS)
def test_bad_grids_are_named(kind):
    times, message = BAD_GRIDS[kind]
    denoise, grid = anisotropic(jnp.float32).denoiser(VP()), jnp.float32(times)
    run = lambda grid: sample(keys_of(2), denoise, VP(), DDIM(), grid, (2,))
    with pytest.raises(ValueError, match=message):
        run(grid)
    with pytest.raises(ValueError, match=message):
        checked(run)(grid)


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if solver.needs_signal])
def test_solvers_that_need_signal_refuse_to_start_without(name):
    process, denoise = RectifiedFlow(), anisotropic(jnp.float32).denoiser(RectifiedFlow())
    run = lambda grid: sample(keys_of(2), denoise, process, SOLVERS[name], grid, (2,))
    with pytest.raises(ValueError, match=r"cannot start at t = 1\.0, where the signal-to-noise ratio is zero"):
        run(uniform(process, 4))
    assert np.isfinite(run(0.9 * uniform(process, 4) + 0.001)).all()


def test_noise_cannot_be_inverted():
    denoise = anisotropic(jnp.float32).denoiser(VP())
    for solver in (DDPM(), DDIM(eta=0.5)):
        with pytest.raises(ValueError, match=r"increase, for a method without noise.*got \[0\.1 0\.4\]"):
            integrate(keys_of(2), jnp.ones((2, 2)), denoise, VP(), solver, jnp.float32([0.1, 0.4]))


def test_values_that_are_not_finite_are_named():
    def denoise(x, t):
        x0 = jnp.where((jnp.arange(3)[:, None] == 1) & (t < 0.5), jnp.inf, x)
        return Prediction(x0, x)

    run = checked(lambda grid: sample(keys_of(3), denoise, VP(), DDIM(), grid, (2,)))
    with pytest.raises(ValueError, match=r"predicted inf as x0 of sample 1 at t = 0\.4\d*; it must be finite"):
        run(jnp.float32([0.9, 0.6, 0.4, 0.1]))
    assert np.isfinite(run(jnp.float32([0.9, 0.8, 0.7, 0.6]))).all()


def test_bad_arguments_are_named():
    denoise = anisotropic(jnp.float32).denoiser(VP())
    with pytest.raises(ValueError, match=r"grid must have shape \[n\] with n >= 2, got \(1,\)"):
        sample(keys_of(2), denoise, VP(), Euler(), jnp.ones(1), (2,))
    with pytest.raises(ValueError, match=r"one key a sample, got \(\)"):
        sample(jax.random.key(0), denoise, VP(), Euler(), karras(VP(), 4), (2,))
    with pytest.raises(ValueError, match=r"one key a sample, got \(3,\) for x of shape \(2, 2\)"):
        integrate(keys_of(3), jnp.ones((2, 2)), denoise, VP(), Euler(), karras(VP(), 4))
    wrong = lambda x, t: Prediction(x[:, :1], x)
    with pytest.raises(ValueError, match=r"predict x0 in the shape of its input, \(2, 2\), got \(2, 1\)"):
        sample(keys_of(2), wrong, VP(), Euler(), karras(VP(), 4), (2,))
    with pytest.raises(ValueError, match=r"0 <= eta <= 1, got 1\.5"):
        DDIM(eta=1.5)
    with pytest.raises(ValueError, match="beta_tilde, beta, learned, analytic, got 'gamma'"):
        DDPM(variance="gamma")
