"""The measures of the lab against closed forms and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiff import lab, oracles
from jdiff.processes import EDM, VP
from jdiff.samplers import DDIM, DDPM, Heun, integrate, log_snr

pytestmark = pytest.mark.usefixtures("x64")


def test_orders_are_slopes_with_the_interval_of_the_regression():
    steps = [32, 64, 128, 256]
    exact = lab.measured_order(steps, [3.0 * n**-2.5 for n in steps])
    assert exact.order == pytest.approx(2.5) and exact.half_width < 1e-6
    errors = [3.1e-3, 6.9e-4, 1.9e-4, 4.4e-5]
    fit = stats.linregress(np.log(steps), np.log(errors))
    got = lab.measured_order(steps, errors)
    np.testing.assert_allclose(got, [-fit.slope, fit.stderr * stats.t.ppf(0.975, 2)], rtol=1e-9)


def test_orders_of_sampled_errors_scatter_as_their_interval_says():
    steps = np.array([24, 48, 96])
    exact, relative = 3.0 * steps**-2.0, np.array([0.01, 0.03, 0.08])
    draws = exact * (1 + relative * np.random.default_rng(0).normal(size=(2000, 3)))
    slopes = [lab.measured_order(steps, errors, exact * relative).order for errors in draws]
    half_width = lab.measured_order(steps, exact, exact * relative).half_width
    assert half_width == pytest.approx(1.96 * np.std(slopes), rel=0.06)


@pytest.mark.parametrize("process", [EDM(), VP()], ids=["edm", "vp"])
def test_exact_ends_are_those_of_the_closed_form(process):
    target, x, (t_min, t_max) = lab.target("gaussian"), lab.starts(process, 16), process.time_span
    got = lab.exact_end(target, process, x, t_max, t_min)
    np.testing.assert_allclose(got, oracles.gaussian_flow(target, process, x, t_max, t_min), rtol=1e-8, atol=1e-10)


def test_errors_on_the_way_are_those_of_the_states_there():
    """Of DDIM's steps one by one, against the closed form of the flow."""
    process, target = VP(t_min=0.05), lab.target("gaussian")
    x, grids = lab.starts(process, 16), [lab.even_grid(process, n) for n in (6, 9)]
    exact = lab.exact_path(target, process, x, grids[0][::2])
    flow = [oracles.gaussian_flow(target, process, x, grids[0][0], t) for t in grids[0][::2]]
    np.testing.assert_allclose(exact, np.stack(flow), rtol=1e-8, atol=1e-9)
    got = lab.errors_on_the_way(DDIM(), process, target, grids, x, exact)
    for errors, grid in zip(got, grids, strict=True):
        at = grid[:: (len(grid) - 1) // 3]
        ends = [
            integrate(lab.keys_of(16), x, target.denoiser(process), process, DDIM(), grid[grid >= t]) for t in at[1:]
        ]
        apart = np.stack(ends) - exact[1:]
        np.testing.assert_allclose(errors, [0, *np.sqrt(np.mean(apart**2, axis=(1, 2)))], rtol=1e-9)
    with pytest.raises(ValueError, match="8 steps, in 8 rows of a plan, do not share 3 times"):
        lab.errors_on_the_way(DDIM(), process, target, [lab.even_grid(process, 8)], x, exact)


def test_gaussian_moments_of_one_ancestral_step():
    """By hand for data N(0, v I): x_s = a x_t + sd z, with a from regression of x0 on x_t in the posterior's mean."""
    process, v, t, s = EDM(), 0.49, 2.0, 0.7
    target = oracles.gaussian(jnp.zeros(2), v * jnp.eye(2))
    mean, covariance = lab.gaussian_moments(DDPM())(process, target, jnp.array([t, s]))
    gain = v / (v + t**2)  # E[x0 | x_t] = gain x_t
    a = (s / t) ** 2 + (1 - (s / t) ** 2) * gain
    expected = a**2 * (v + t**2) + s**2 * (1 - (s / t) ** 2)
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    np.testing.assert_allclose(covariance, expected * np.eye(2), rtol=1e-12, atol=1e-12)


def test_sampled_moments_agree_with_the_exact_ones():
    process, target = VP(t_min=0.05), lab.target("gaussian")
    grid = log_snr(process, 9, jnp.float64)
    x = lab.starts(process, 20000)
    sampled, floor = lab.sampled_moment_error(DDPM(), process, target, grid, x)
    moments = lab.gaussian_moments(DDPM())(process, target, grid)
    exact = lab.moment_error(moments, process, target, float(grid[-1]))
    assert exact > 10 * floor
    assert sampled == pytest.approx(exact, abs=4 * 0.7 * np.sqrt(6 / 20000))


def test_path_errors_fall_with_their_order():
    """Of ancestral sampling on the ring, of strong order one."""
    process, target = VP(t_min=0.05), lab.target("ring8")
    grid = lambda n: lab.even_grid(process, n)
    strong = lab.path_errors(DDPM(), process, target, grid, (32, 64, 128), paths=128)
    assert lab.measured_order((32, 64, 128), strong).order == pytest.approx(1, abs=0.25)


def test_certificates_say_what_is_documented_and_measured():
    process, target = VP(t_min=0.05), lab.target("gaussian")
    found = lab.certificate("heun", Heun(), process, target)
    assert found["documented"] == {"global": 2} and found["orders"]["global"]["order"] == pytest.approx(2, abs=0.2)
    assert len(found["orders"]["global"]["errors"]) == 4


def test_steps_for_a_budget():
    assert [lab.steps_for(DDIM(), n) for n in (1, 5)] == [1, 5]
    assert [lab.steps_for(Heun(), n) for n in (1, 2, 5)] == [0, 1, 2]


@pytest.mark.parametrize("name", ["ring8", "ring3", "gaussian", "mixture", "circle", "swiss_roll"])
def test_targets_have_the_moments_they_say(name):
    target = lab.target(name)
    draws = np.asarray(target.sample(jax.random.key(0), 20000))
    mean, covariance = target.moments()
    np.testing.assert_allclose(draws.mean(0), mean, atol=4 * np.sqrt(np.trace(covariance) / 20000))
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=4 * np.trace(covariance) * np.sqrt(2 / 20000))


def test_wrong_names_list_the_right_ones():
    for name in ("ring", "ringx", "cube"):
        with pytest.raises(ValueError, match=rf"no target '{name}'; there are ringK, gaussian"):
            lab.target(name)
    with pytest.raises(ValueError, match="at least one mode, got 'ring0'"):
        lab.target("ring0")
    with pytest.raises(ValueError, match="no process 'vpp'; there are vp, subvp"):
        lab.lookup(lab.PROCESSES, "vpp", "process")
