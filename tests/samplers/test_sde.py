"""SDE solvers beyond the table: what they solve exactly, their weights, their noise levels, and no noise at all."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jdiff import lab, oracles
from jdiff.prediction import Prediction
from jdiff.samplers import (
    DDIM,
    DDPM,
    ERSDE,
    SEEDS,
    SOLVERS,
    Ancestral2,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp3M,
    DPMpp3MSDE,
    EDMStochastic,
    Interval,
    Restart,
    SASolver,
    brownian,
    independent,
    integrate,
    log_snr,
    sample,
)
from tests.samplers.tools import (
    SMOOTH,
    SMOOTH_TARGETS,
    exact_end,
    grid_between,
    handed_in,
    keys_of,
    measured_order,
    moments_at_the_end,
    runner,
)
from tests.table import PROCESSES, anisotropic

POINT = (0.6, -1.1)
# Exact where x0 is the same for every x, in however few steps; without the noise predictions' Runge-Kutta methods.
EXACT_FOR_A_POINT = {
    "ddim": DDIM(),
    "ddim_half": DDIM(eta=0.5),
    "ddpm": DDPM(),
    "dpm_2_ancestral": Ancestral2(),
    "dpmpp_2s_ancestral": Ancestral2(space="x0"),
    "dpmpp_2s_sde": SEEDS(space="x0"),
    "seeds_3 of x0": SEEDS(space="x0", stages=3),
    "dpmpp_2m_sde": DPMpp2MSDE(eta=0.7),
    "dpmpp_3m_sde": DPMpp3MSDE(),
    "er_sde_3": ERSDE(),
    "sa_solver": SASolver(tau=0.6),
    "sa_solver, sometimes": SASolver(tau=1.3, low=0.3, high=2.0),
    "edm": EDMStochastic(churn=1.5),
    "edm, sometimes": EDMStochastic(churn=0.9, low=0.3, high=2.0),
    "restart": Restart(intervals=(Interval(0.3, 2.0, 2, 0.5), Interval(1.0, 3.0, 1, 0.3))),
}


def the_point(process, target, number):
    def denoise(x, t):
        x0 = jnp.broadcast_to(jnp.asarray(POINT, x.dtype), x.shape)
        return Prediction(x0, (x - process.alpha(t) * x0) / process.sigma(t))

    return denoise


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", EXACT_FOR_A_POINT)
def test_a_point_is_sampled_exactly_in_four_steps(name):
    """From N(alpha_t p, sigma_t^2) to N(alpha_s p, sigma_s^2): every weight and every noise level of a method."""
    process, target = SMOOTH["vp"][0], oracles.gaussian(jnp.array(POINT), 1e-20 * jnp.eye(2))
    grid = jnp.array([0.9, 0.6, 0.35, 0.2, 0.05])
    mean, covariance = moments_at_the_end(EXACT_FOR_A_POINT[name], the_point)(process, target, grid)
    np.testing.assert_allclose(mean, process.alpha(0.05) * np.array(POINT), rtol=1e-8)
    np.testing.assert_allclose(covariance, process.sigma(0.05) ** 2 * np.eye(2), rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["flow", "zero_snr"])
def test_from_no_signal_to_the_data(name):
    """Finite where the log-SNR is not, at both ends: to a point, exactly."""
    process, x = PROCESSES[name], jax.random.normal(jax.random.key(0), (2, 2))
    grid = jnp.array([process.time_span[1], 0.7, 0.4, 0.0])
    denoise = the_point(process, None, 0)
    run = lambda x: {
        label: integrate(keys_of(2), x, denoise, process, solver, grid) for label, solver in EXACT_FOR_A_POINT.items()
    }
    for label, end in jax.jit(run)(x).items():
        np.testing.assert_allclose(end, [POINT, POINT], rtol=1e-6, err_msg=label)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("solver", "scale", "variable", "rate"),
    [
        (
            SASolver(predictor=3, corrector=0, tau=0.7),
            lambda r: r ** (1 + 0.7**2),
            lambda r: -np.log(r),
            lambda r: -1 / r,
        ),
        (DPMpp3MSDE(eta=0.5, published=False), lambda r: r**1.5, lambda r: -np.log(r), lambda r: -1 / r),
        (ERSDE(memory=3), lambda r: r * (np.exp(r**0.3) + 10), lambda r: r, lambda r: 1.0),
    ],
    ids=["sa_solver", "dpmpp_3m_sde", "er_sde_3"],
)
def test_weights_integrate_parabolas(solver, scale, variable, rate):
    """y_s = phi_s / phi_t y_t + int x0 d(-phi_s / phi), arXiv:2309.06169, eq. 14, by quadrature."""
    process, start = SMOOTH["vp"]
    grid = grid_between(process, start, 9) ** 1.1 * 1.02  # of no equal steps
    plan, level, alpha = (
        solver.plan(process, grid),
        *(np.asarray(v) for v in (np.exp(-process.log_snr(grid) / 2), process.alpha(grid))),
    )
    t, s = 5, 6
    nodes = variable(level[t : t - 3 : -1])
    kept = scale(level[s]) / scale(level[t])
    np.testing.assert_allclose(plan.keep[t], kept * alpha[s] / alpha[t], rtol=1e-10)
    for power in range(3):
        # By parts: the integral of the polynomial over the decay's measure.
        ends = variable(level[s]) ** power - kept * variable(level[t]) ** power
        slope = lambda r, p=power: scale(level[s]) / scale(r) * (p * variable(r) ** (p - 1) * rate(r) if p else 0)
        exact = ends + quad(slope, level[s], level[t], epsrel=1e-11)[0]
        np.testing.assert_allclose(plan.mix[t, :3] @ nodes**power, alpha[s] * exact, rtol=1e-7)
    variance = level[s] ** 2 - (level[t] * kept) ** 2
    np.testing.assert_allclose(plan.spread[t], alpha[s] * np.sqrt(variance), rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("quiet", "ode"),
    [
        (DPMpp2MSDE(eta=0.0), DPMpp2M()),
        (DPMpp3MSDE(eta=0.0, published=False), DPMpp3M()),
        (SASolver(predictor=3, corrector=0, tau=0.0), DPMpp3M()),
        (EDMStochastic(churn=0.0), SOLVERS["heun"]),
    ],
    ids=str,
)
def test_without_noise_they_are_ode_solvers(quiet, ode):
    """Heun's alone is in another variable, which is that of EDM's process."""
    process, target = SMOOTH["edm"][0], SMOOTH_TARGETS["mixture"]()
    x, grid = 2 * jax.random.normal(jax.random.key(0), (5, 2)), grid_between(process, 2.0, 7) ** 1.1
    grid = grid[1:-1]
    one, other = (integrate(keys_of(5), x, target.denoiser(process), process, s, grid) for s in (quiet, ode))
    np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_the_published_third_order_without_noise_has_the_weights_of_its_ode_form():
    """From the third step on; in the second, k-diffusion integrates the slope exactly, and the paper's 2M does not."""
    process, start = SMOOTH["vp"]
    grid = grid_between(process, start, 9) ** 1.1
    mix = DPMpp3MSDE(eta=0.0).plan(process, grid).mix
    np.testing.assert_allclose(mix[2:, 1:], DPMpp3M(published=True).plan(process, grid).mix[2:], rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 2), (3, 4)])
def test_order_of_sa_solver_without_noise(predictor, corrector):
    solver = SASolver(predictor=predictor, corrector=corrector, tau=0.0)
    (process, start), target, errors = SMOOTH["vp"], SMOOTH_TARGETS["mixture"](), []
    x, exact = exact_end("vp", "mixture")
    for n in (64, 128, 256):
        end = runner(solver)(process, target, x, grid_between(process, start, n))
        errors.append(np.sqrt(np.mean((end - exact) ** 2)))
    assert solver.order == corrector
    assert measured_order((64, 128, 256), errors) == pytest.approx(solver.order, abs=0.2), errors


@pytest.mark.usefixtures("x64")
def test_churn_goes_up_by_gamma_and_never_beyond_the_span():
    process, grid = PROCESSES["edm"], jnp.array([80.0, 60.0, 20.0, 3.0, 0.5, 0.1])
    plan = EDMStochastic(churn=1.0, low=0.6, high=70.0, noise=1.1).plan(process, grid)
    np.testing.assert_allclose(plan.up, [80.0, 72.0, 24.0, 3.6, 0.5], rtol=1e-12)
    np.testing.assert_allclose(plan.spread**2, 1.21 * (np.square(plan.up) - np.square(grid[:-1])), rtol=1e-9)
    most = EDMStochastic(churn=100.0).plan(process, grid).up
    np.testing.assert_allclose(most, np.minimum(np.sqrt(2) * np.asarray(grid[:-1]), 80.0), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_restart_goes_up_from_the_nearest_time_and_down_again():
    process, grid = PROCESSES["edm"], jnp.array([80.0, 10.0, 3.0, 1.0, 0.1])
    solver = Restart(intervals=(Interval(low=0.9, high=9.0, repeats=2, share=0.5), Interval(3.5, 200.0, 1, 0.1)))
    plan = solver.plan(process, grid)
    middle = ((9.0 ** (1 / 7) + 1) / 2) ** 7
    # Restarts that begin at one time would follow in the order of their intervals.
    np.testing.assert_allclose(plan.up, [80.0, 10.0, 80.0, 3.0, 9.0, middle, 9.0, middle, 1.0], rtol=1e-9)
    np.testing.assert_allclose(plan.s, [10.0, 3.0, 3.0, 1.0, middle, 1.0, middle, 1.0, 0.1], rtol=1e-9)
    rises = np.sqrt([0, 0, 80.0**2 - 9, 0, 80.0, 0, 80.0, 0, 0])
    np.testing.assert_allclose(plan.spread, rises, rtol=1e-9)
    assert solver.nfe(4) == 2 * len(plan.up)


@pytest.mark.usefixtures("x64")
def test_parts_of_a_step_are_read_off_one_brownian_path():
    """A method with two draws a step gives nearly the same samples at any number of steps."""
    process, target, solver = SMOOTH["vp"][0], anisotropic(), SEEDS(space="x0")
    draw = lambda n, noise: sample(
        keys_of(16), target.denoiser(process), process, solver, log_snr(process, n, jnp.float64), (2,), noise=noise
    )
    one, other = draw(65, brownian), draw(33, brownian)
    assert np.sqrt(np.mean((one - other) ** 2)) < 0.1
    assert np.sqrt(np.mean((one - draw(65, independent)) ** 2)) > 0.3


@pytest.mark.usefixtures("x64")
def test_parts_of_a_step_are_independent_and_whole():
    """SEEDS: the noise of a step has the same variance, in one part or in several."""
    process, grid = SMOOTH["vp"][0], jnp.array([0.6, 0.5])
    spreads = {stages: SEEDS(space="x0", stages=stages).plan(process, grid).spread[0, -1] for stages in (2, 3)}
    one = DDPM()
    drawn = jnp.ones((1, 1, 1, 2))
    nothing = lambda x, t: Prediction(jnp.zeros_like(x), jnp.zeros_like(x))
    whole = integrate(keys_of(1), jnp.zeros((1, 2)), nothing, process, one, grid, noise=handed_in(drawn, drawn))[0, 0]
    for spread in spreads.values():
        np.testing.assert_allclose(jnp.sum(spread**2), whole**2, rtol=1e-10)
        assert all(a < b for a, b in itertools.pairwise(spread))  # what came first has faded


BAD = {
    "DPMpp2MSDE needs eta >= 0, got -0.5": lambda: DPMpp2MSDE(eta=-0.5),
    "memory of 1, 2 or 3, got 4": lambda: ERSDE(memory=4),
    "predictor >= 1 and corrector >= 0, got 0, 2": lambda: SASolver(predictor=0, corrector=2),
    "tau >= 0, got -1": lambda: SASolver(tau=-1.0),
    "2 or 3 stages in 'x0' or 'eps', got 4 in 'eps'": lambda: SEEDS(stages=4),
    "the space 'x0' or 'eps', got 'v'": lambda: Ancestral2(space="v"),
    "churn >= 0 and noise > 0, got -1.0 and 1.0": lambda: EDMStochastic(churn=-1.0),
    "0 < low < high, repeats >= 1 and share > 0, got": lambda: Restart(intervals=(Interval(2.0, 1.0, 1, 0.5),)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_values_are_named(message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        BAD[message]()


def test_solvers_are_pytrees_of_their_values():
    """What is static compiles anew; what is a value does not."""
    assert len(jax.tree.leaves(SASolver())) == 3
    assert jax.tree.structure(SASolver()) == jax.tree.structure(dataclasses.replace(SASolver(), tau=0.5))
    assert jax.tree.structure(Restart()) != jax.tree.structure(Restart(intervals=()))


@pytest.mark.usefixtures("x64")
def test_three_values_of_er_sde_gain_an_order_while_the_noise_is_small():
    (process, start), target, steps = SMOOTH["vp"], anisotropic(), (16, 32, 64)
    run = moments_at_the_end(ERSDE())
    errors = [
        lab.moment_error(run(process, target, grid_between(process, start, n)), process, target, 0.05) for n in steps
    ]
    assert measured_order(steps, errors) == pytest.approx(3, abs=0.2), errors
