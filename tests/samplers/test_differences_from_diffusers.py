"""Where diffusers' schedulers are known to differ from ours, each with its reason: what they do is predicted to 1e-5.

- DDIM with `linspace` spacing steps from timestep i to i - T // N, and not to the next of its timesteps.
- A flow shift is applied twice: once to the ends of the schedule, and to all of it when the timesteps are set.
- Below 15 steps, multistep solvers lower their order in the last two (`lower_order_final`, by default); ours do not.
- Karras and exponential sigmas with `final_sigmas_type="sigma_min"` end with a step of no length.
- DDPM draws no noise in its last step, whatever the variance; our "beta" draws that of the chain.
- DEIS takes eps as a polynomial in log(sigma / alpha); ours, as the paper, in t or in sigma / alpha.
- The third order of `sde-dpmsolver++` has the sign of 1/2 wrong in the factor of the curvature.
- Single-step DPM-Solver-3 gets to its last inner time by DPM-Solver-2 with the middle as its slope, or by the exact
  integral and then combines all three values; the papers take the exact integral and combine two. Ours does.
- SA-Solver of two values adds to the integrals a term of higher order, which algorithm 1 of the paper has not.
- PNDM with `skip_prk_steps` begins with a step and a half instead of Runge and Kutta's.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.processes import EDM, RectifiedFlow, flow_shift
from jdiff.samplers import DDIM, DDPM, DEIS, DPMpp2M, DPMpp3MSDE, DPMSolver, SASolver, linspace
from tests.samplers.diffusers_tools import (
    CLOSE,
    SIGMA_MIN,
    N,
    T,
    X,
    apart,
    at,
    chain_of,
    data,
    diffusers,
    made,
    noises,
    ours,
    single_step,
    state,
    theirs,
    torch,
)


def test_ddim_with_linspace_spacing_steps_past_its_own_timesteps():
    peer = made("DDIM", 10, timestep_spacing="linspace", clip_sample=False)
    process = chain_of(peer)
    assert peer.timesteps[5:7].tolist() == [444, 333]
    peer.timesteps = peer.timesteps[5:6]
    there = theirs(peer)
    assert apart(there, ours(DDIM(), process, at([444, 344]))) < CLOSE
    assert apart(there, ours(DDIM(), process, at([444, 333]))) > 1e-3


def test_a_flow_shift_is_applied_twice():
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    peer.set_timesteps(N)
    once = lambda t: 3 * t / (1 + 2 * t)
    assert apart(peer.sigmas[:-1], once(np.linspace(1, once(1 / T), N))) < 1e-6
    meant = once(np.linspace(1, 1 / T, N))
    assert apart(meant, RectifiedFlow().time(flow_shift(3.0).log_snr(jnp.linspace(1, 1 / T, N)))) < CLOSE
    assert peer.sigmas[-2] > 2.9 * meant[-1]


def test_below_15_steps_the_last_is_of_order_1():
    peer = made("DPMSolverMultistep", 10, prediction_type="sample", final_sigmas_type="sigma_min")
    process, grid = chain_of(peer), np.append(at(peer.timesteps), at([0]))
    there = theirs(peer, sample=True)
    peer.set_timesteps(10)
    before = theirs(peer, sample=True, steps=9)
    assert apart(before, ours(DPMpp2M(), process, grid[:-1])) < CLOSE
    assert apart(there, ours(DDIM(), process, grid[-2:], x=before)) < CLOSE
    assert apart(there, ours(DPMpp2M(), process, grid)) > 1e-3


@pytest.mark.parametrize("kind", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_a_last_step_of_no_length(kind):
    peer = made("DPMSolverMultistep", prediction_type="sample", final_sigmas_type="sigma_min", **{kind: True})
    assert abs(peer.sigmas[-1] / peer.sigmas[-2] - 1) < 1e-5
    there = theirs(peer, sample=True)
    peer.set_timesteps(N)
    assert apart(theirs(peer, sample=True, steps=N - 1), there) < CLOSE


def test_ddpm_draws_nothing_in_its_last_step():
    peer = made("DDPM", 20, variance_type="fixed_large", clip_sample=False)
    generator, noise, process = torch.Generator().manual_seed(0), noises(1), chain_of(peer)
    before = theirs(peer, steps=19, generator=generator)
    peer.timesteps = peer.timesteps[19:]
    there = theirs(peer, before, generator=generator)
    here = ours(DDPM(variance="beta"), process, at([0, -1]), x=before, noise=noise)
    assert apart(here - there, float(process.sigma(jnp.float32(1 / T))) * noise[0, 0]) < CLOSE


def test_deis_is_a_polynomial_in_the_logarithm():
    peer = made("DEISMultistep", prediction_type="sample", lower_order_final=False)
    first, second, third = peer.sigmas[:3].double().numpy()
    scale = np.sqrt(1 + np.array([first, second, third]) ** 2)
    start = X * scale[0]
    here = ours(DEIS(variable="rho", order=2), EDM(), [first, second, third], x=start)
    middle = theirs(peer, sample=True, steps=1)
    peer.set_timesteps(N)
    there = theirs(peer, sample=True, steps=2)
    eps = [(x * s - data(x, level)) / level for x, s, level in [(X, scale[0], first), (middle, scale[1], second)]]
    # The weight of the older value: integrals of the line through it in log rho, and in rho.
    in_log = (third * (np.log(third / second) - 1) + second) / np.log(first / second)
    in_rho = (third - second) ** 2 / (2 * (first - second))
    assert apart(there * scale[2] - here, (in_log - in_rho) * (eps[0] - eps[1])) < CLOSE
    assert apart(there * scale[2], here) > 1e-4


def test_the_third_order_of_the_sde_has_a_sign_wrong():
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"}
    config["prediction_type"] = "sample"
    noise, states = noises(3), []
    for steps in range(4):
        peer = made("DPMSolverMultistep", **config, **SIGMA_MIN)
        states.append(theirs(peer, sample=True, steps=steps, variance_noise=noise))
    levels = peer.sigmas[:4].double().numpy()
    process = chain_of(peer)
    here = ours(DPMpp3MSDE(), process, linspace(process, N + 1)[:4], noise=noise)
    values = [data(x, level) for x, level in zip(states[:3], levels[:3], strict=True)]
    before, last, h = -np.diff(np.log(levels))
    r0, r1 = last / h, before / h
    curvature = ((values[2] - values[1]) / r0 - (values[1] - values[0]) / r1) / (r0 + r1)
    assert apart(states[3] - here, state(-curvature, 0, levels[3])) < CLOSE
    assert apart(states[3], here) > 1e-3


def test_sa_solver_of_one_value_and_the_term_that_is_added_for_two():
    noise, tau = noises(N), {"tau_func": lambda t: 1.0, "lower_order_final": False, "prediction_type": "sample"}
    one = made("SASolver", predictor_order=1, corrector_order=1, **tau)
    process, grid = chain_of(one), linspace(chain_of(one), N + 1)
    generator = lambda: torch.Generator().manual_seed(0)
    here = ours(SASolver(predictor=1, corrector=1), process, grid, noise=noise)
    assert apart(theirs(one, sample=True, generator=generator()), here) < CLOSE
    two = made("SASolver", predictor_order=2, corrector_order=1, **tau)
    middle = theirs(two, sample=True, steps=1, generator=generator())
    two.set_timesteps(N)
    there = theirs(two, sample=True, steps=2, generator=generator())
    levels = two.sigmas[:3].double().numpy()
    (before, h), change = -np.diff(np.log(levels)), data(middle, levels[1]) - data(X, levels[0])
    added = 2 * (h**2 / 2 - (2 * h - 1 + np.exp(-2 * h)) / 4) / before
    here = ours(SASolver(predictor=2, corrector=1), process, grid[:3], noise=noise[:2])
    assert apart(there - here, state(added * change, 0, levels[2])) < CLOSE
    assert apart(there, here) > 1e-4


def test_pndm_without_runge_and_kutta_repeats_its_first_step():
    peer = made("PNDM", 20, skip_prk_steps=True)
    there = theirs(peer, steps=2)
    levels = ((1 / peer.alphas_cumprod[[950, 900]] - 1) ** 0.5).double().numpy()
    eps_of = lambda x, level: (x * np.sqrt(1 + level**2) - data(x, level)) / level
    first = eps_of(X, levels[0])
    move = lambda eps: state(X * np.sqrt(1 + levels[0] ** 2) - levels[0] * eps, eps, levels[1])
    assert apart(there, move((first + eps_of(move(first), levels[1])) / 2)) < CLOSE


@pytest.mark.parametrize("space", ["x0", "eps"])
def test_single_steps_of_order_3_have_order_2_inside(space):
    inside, levels, x = single_step(3, space, 2)
    assert apart(inside, ours(DPMSolver(order=2, space=space), EDM(), levels[[0, 2]], x=x)) < CLOSE
    there, _, _ = single_step(3, space, 3)
    assert apart(there, ours(DPMSolver(order=3, space=space), EDM(), levels[[0, 3]], x=x)) > 4 * CLOSE
