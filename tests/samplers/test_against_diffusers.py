"""Our solvers beside diffusers' schedulers, in float32: the same network outputs, grid and noise.

Wherever the maths is the same, they agree to 1e-5 of the greatest value, or of 1. Where it is not:
`test_differences_from_diffusers.py`.
"""

import numpy as np
import pytest

from jdiff.processes import EDM, Chain, RectifiedFlow
from jdiff.samplers import (
    DDIM,
    DDPM,
    DEIS,
    IPNDM,
    PNDM,
    Ancestral2,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp3M,
    DPMSolver,
    DPMSolver2M,
    Euler,
    Heun,
    UniPC,
    leading,
    linspace,
    trailing,
)
from tests.samplers.diffusers_tools import (
    CLOSE,
    SIGMA_MIN,
    N,
    T,
    X,
    apart,
    at,
    chain_of,
    diffusers,
    made,
    network,
    noises,
    ours,
    single_step,
    theirs,
    theirs_unscaled,
    torch,
)

MULTISTEP = {
    "2M": ("DPMSolverMultistep", {"solver_order": 2}, DPMpp2M()),
    "3M": ("DPMSolverMultistep", {"solver_order": 3}, DPMpp3M(published=True)),
    "2M of eps": ("DPMSolverMultistep", {"solver_order": 2, "algorithm_type": "dpmsolver"}, DPMSolver2M()),
    "order 1": ("DPMSolverMultistep", {"solver_order": 1}, DDIM()),
    "DEIS, order 1": ("DEISMultistep", {"solver_order": 1}, DDIM()),
} | {
    f"UniPC-{p}, {kind}": ("UniPCMultistep", {"solver_order": p, "solver_type": kind}, UniPC(p=p, variant=kind))
    for p, kind in [(1, "bh1"), (1, "bh2"), (2, "bh1"), (2, "bh2"), (3, "bh2"), (4, "bh2")]
}


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_solvers_on_a_chain(name):
    scheduler, config, solver = MULTISTEP[name]
    ending = SIGMA_MIN if scheduler != "DEISMultistep" else {"lower_order_final": False}
    peer = made(scheduler, prediction_type="sample", **config, **ending)
    process = chain_of(peer)
    grid = linspace(process, N + 1)
    assert np.array_equal(at(peer.timesteps), np.asarray(grid[:-1], np.float64).round(3))
    assert apart(theirs(peer, sample=True), ours(solver, process, grid)) < CLOSE


@pytest.mark.parametrize("name", ["2M", "3M", "UniPC-2, bh2"])
def test_a_last_step_to_the_data_is_the_data_predicted(name):
    scheduler, config, solver = MULTISTEP[name]
    peer = made(scheduler, prediction_type="sample", **config, final_sigmas_type="zero", lower_order_final=True)
    if scheduler.startswith("DPM"):
        grid = np.append(at(peer.timesteps), 0)
        assert apart(theirs(peer, sample=True), ours(solver, chain_of(peer), grid)) < CLOSE
        return
    # UniPC lowers its order over the last steps: up to there.
    steps = N - config["solver_order"]
    assert (
        apart(theirs(peer, sample=True, steps=steps), ours(solver, chain_of(peer), at(peer.timesteps[: steps + 1])))
        < CLOSE
    )


def test_stochastic_2m_on_a_chain():
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "prediction_type": "sample"}
    peer, noise = made("DPMSolverMultistep", **config, **SIGMA_MIN), noises(N)
    grid = linspace(chain_of(peer), N + 1)
    assert (
        apart(theirs(peer, sample=True, variance_noise=noise), ours(DPMpp2MSDE(), chain_of(peer), grid, noise=noise))
        < CLOSE
    )


@pytest.mark.parametrize(("variance", "name"), [("beta_tilde", "fixed_small"), ("beta", "fixed_large")])
def test_ancestral_sampling_until_the_first_timestep(variance, name):
    peer, noise = made("DDPM", 20, variance_type=name, clip_sample=False), noises(19)
    there = theirs(peer, steps=19, generator=torch.Generator().manual_seed(0))
    assert apart(there, ours(DDPM(variance=variance), chain_of(peer), leading(chain_of(peer), 20), noise=noise)) < CLOSE


@pytest.mark.parametrize(("eta", "spacing"), [(0.0, leading), (0.5, trailing), (1.0, leading), (1.0, trailing)])
def test_ddim_to_the_data(eta, spacing):
    peer, noise = made("DDIM", 20, timestep_spacing=spacing.__name__, clip_sample=False), noises(20)
    process = chain_of(peer)
    grid = np.append(spacing(process, 20), 0)
    there = theirs(peer, eta=eta, variance_noise=noise if eta else None)
    assert apart(there, ours(DDIM(eta=eta), process, grid, noise=noise)) < CLOSE


@pytest.mark.parametrize("space", ["x0", "eps"])
def test_single_steps_of_order_2(space):
    there, levels, x = single_step(2, space, 12)
    assert apart(there, ours(DPMSolver(order=2, space=space), EDM(), levels[::2], x=x)) < CLOSE


UNSCALED = {
    "Euler": ("EulerDiscrete", Euler(), 1),
    "LMS": ("LMSDiscrete", DEIS(variable="rho"), 1),
    "Euler ancestral": ("EulerAncestralDiscrete", DDIM(eta=1.0), 1),
    "Heun": ("HeunDiscrete", Heun(), 2),
    "DPM2": ("KDPM2Discrete", DPMSolver(order=2), 2),
    "DPM2 ancestral": ("KDPM2AncestralDiscrete", Ancestral2(), 2),
}


@pytest.mark.parametrize("name", UNSCALED)
def test_solvers_in_sigma(name):
    """Those of one evaluation a step go to the data, the others to the last noise level, before their Euler step."""
    scheduler, solver, evaluations = UNSCALED[name]
    peer = made(scheduler)
    levels = peer.sigmas.unique().flip(0).numpy()
    grid = levels if evaluations == 1 else levels[:-1]
    noise, options = None, {}
    if "ancestral" in name:
        noise, options = noises(len(grid) - 1), {"generator": torch.Generator().manual_seed(0)}
    there = theirs_unscaled(peer, X * levels[0], steps=evaluations * (len(grid) - 1), **options)
    assert apart(there, ours(solver, EDM(sigma_min=0.01), grid, x=X * levels[0], noise=noise)) < CLOSE


@pytest.mark.parametrize(("order", "solver"), [(0, Euler()), (2, DPMpp2M()), (3, DPMpp3M(published=True))])
def test_edm_schedulers(order, solver):
    if order:
        peer = diffusers.EDMDPMSolverMultistepScheduler(solver_order=order, **SIGMA_MIN)
    else:
        peer = diffusers.EDMEulerScheduler(final_sigmas_type="sigma_min")
    peer.set_timesteps(N)
    x = torch.tensor(80 * X)
    for i, t in enumerate(peer.timesteps[:-1]):
        peer.scale_model_input(x, t)
        x0 = network(torch, x, 1.0, peer.sigmas[i])
        zero, one = torch.zeros(()), torch.ones(())
        skip, out = (peer.precondition_outputs(*at, peer.sigmas[i]) for at in [(one, zero), (zero, one)])
        x = peer.step((x0 - skip * x) / out, t, x).prev_sample
    assert apart(x, ours(solver, EDM(), peer.sigmas[:-1].numpy(), x=80 * X)) < CLOSE


def test_ipndm():
    process = Chain.from_betas(np.linspace(1e-4, 0.02, T))
    grid = linspace(process, N + 1)
    sigma = np.asarray(process.sigma(grid))
    peer = diffusers.IPNDMScheduler(trained_betas=sigma.tolist())
    peer.set_timesteps(N)
    x = torch.tensor(X)
    for i, t in enumerate(peer.timesteps):
        alpha, sigma = peer.alphas[i], peer.betas[i]
        x0 = network(torch, x, alpha, sigma)
        x = peer.step(alpha * (x - alpha * x0) / sigma - sigma * x0, t, x).prev_sample
    assert apart(x, ours(IPNDM(), process, grid)) < CLOSE


def test_pndm_until_the_first_timestep():
    peer = made("PNDM", 20)
    assert apart(theirs(peer, steps=12 + 16), ours(PNDM(), chain_of(peer), leading(chain_of(peer), 20))) < CLOSE


@pytest.mark.parametrize(
    ("name", "shift", "solver"), [("Euler", 1.0, Euler()), ("Euler", 3.0, Euler()), ("Heun", 1.0, Heun())]
)
def test_flows(name, shift, solver):
    peer = getattr(diffusers, f"FlowMatch{name}DiscreteScheduler")(shift=shift)
    peer.set_timesteps(N)
    calls = N if name == "Euler" else 2 * (N - 1)
    x = torch.tensor(X)
    for i, t in enumerate(peer.timesteps[:calls]):
        sigma = peer.sigmas[i]
        x0 = network(torch, x, 1 - sigma, sigma)
        x = peer.step((x - x0) / sigma, t, x).prev_sample
    grid = peer.sigmas.numpy() if name == "Euler" else peer.sigmas[[0, *range(1, 2 * N - 1, 2)]].numpy()
    assert apart(x, ours(solver, RectifiedFlow(), grid)) < CLOSE


def test_multistep_solver_on_a_flow():
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    peer = made("DPMSolverMultistep", **config)
    x = torch.tensor(X)
    for i, t in enumerate(peer.timesteps):
        sigma = peer.sigmas[i]
        x = peer.step((x - network(torch, x, 1 - sigma, sigma)) / sigma, t, x).prev_sample
    assert apart(x, ours(DPMpp2M(), RectifiedFlow(), peer.sigmas.numpy())) < CLOSE
