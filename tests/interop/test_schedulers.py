"""A scheduler's config is read as a schedule whose sampler ends where diffusers' scheduler ends."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.interop.schedulers import KINDS, read_schedule
from jdiff.samplers import integrate
from tests.samplers.diffusers_tools import X, apart, diffusers, handed_in, keys_of, network, noises, torch

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD_DDIM = SD | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
# Name: class, config, steps, whether its state is over alpha, tolerance.
CASES = {
    "ddim of stable diffusion": ("DDIM", SD_DDIM, 10, False, 1e-5),
    "ddim to the data": ("DDIM", SD | {"clip_sample": False, "timestep_spacing": "trailing"}, 8, False, 1e-5),
    "ddim of v": ("DDIM", SD_DDIM | {"prediction_type": "v_prediction"}, 10, False, 1e-5),
    "ddim of x0, zero terminal snr": (
        "DDIM",
        SD
        | {
            "prediction_type": "sample",
            "rescale_betas_zero_snr": True,
            "clip_sample": False,
            "timestep_spacing": "trailing",
        },
        10,
        False,
        1e-5,
    ),
    "ddim, cosine": ("DDIM", {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False}, 10, False, 1e-5),
    "euler of stable diffusion xl": (
        "EulerDiscrete",
        SD | {"timestep_spacing": "leading", "steps_offset": 1},
        10,
        True,
        1e-5,
    ),
    # Between timesteps their sigma is linear.
    "euler between timesteps": ("EulerDiscrete", SD, 10, True, 1e-4),
    "euler, karras": ("EulerDiscrete", SD | {"use_karras_sigmas": True}, 10, True, 1e-4),
    "dpm-solver++ 2m": ("DPMSolverMultistep", SD, 10, False, 1e-5),
    "dpm-solver++ 2m, leading": (
        "DPMSolverMultistep",
        SD | {"timestep_spacing": "leading", "steps_offset": 1},
        10,
        False,
        1e-5,
    ),
    "dpm-solver++ 2m, trailing": ("DPMSolverMultistep", SD | {"timestep_spacing": "trailing"}, 10, False, 1e-5),
    "dpm-solver++ 3m": ("DPMSolverMultistep", SD | {"solver_order": 3}, 20, False, 1e-4),
    "unipc": ("UniPCMultistep", SD | {"solver_order": 1}, 20, False, 1e-5),
    "lms": ("LMSDiscrete", SD | {"timestep_spacing": "leading", "steps_offset": 1}, 10, True, 1e-5),
}


def scheduler(name, config, tmp_path):
    made = getattr(diffusers, f"{name}Scheduler")(**config)
    made.save_pretrained(tmp_path)
    return made, read_schedule(tmp_path / "scheduler_config.json")


def said(prediction, x0, eps, alpha, sigma):
    return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[prediction]


def ours(schedule, n, x, noise=None):
    """The end of n evaluations, through the network's raw output."""
    process, told = schedule.process, schedule.parameterization

    def denoise(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x0 = network(jnp, x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        raws = {"Eps": eps, "X0": x0, "V": alpha * eps - sigma * x0, "Velocity": eps - x0}
        return told.prediction(process, raws[type(told).__name__], x, t)

    grid = schedule.grid(n)
    table = np.zeros((len(grid) - 1, 1, *X.shape), np.float32) if noise is None else noise
    source = handed_in(jnp.asarray(table), jnp.asarray(table))
    run = lambda x, grid: integrate(keys_of(len(X)), x, denoise, process, schedule.solver, grid, noise=source)
    return np.asarray(jax.jit(run)(jnp.asarray(x), grid))


@pytest.mark.parametrize("case", CASES)
def test_a_schedule_ends_where_the_scheduler_ends(case, tmp_path):
    name, config, n, over_alpha, close = CASES[case]
    peer, schedule = scheduler(name, config, tmp_path)
    peer.set_timesteps(n)
    grid = schedule.grid(n)
    first = float(grid[0])
    alpha = float(schedule.process.alpha(first))
    x, told = torch.tensor(X / alpha if over_alpha else X), config.get("prediction_type", "epsilon")
    for i, t in enumerate(peer.timesteps):
        assert float(schedule.process.noise_label(grid[i])) == pytest.approx(
            float(t), abs=0.6 * ("karras" in case) + 1e-3
        )
        if over_alpha:
            level = peer.sigmas[i]
            x0, eps = network(torch, x, 1.0, level), (x - network(torch, x, 1.0, level)) / level
            peer.scale_model_input(x, t)
        else:
            kept = peer.alphas_cumprod[int(t)]
            level = kept**0.5, (1 - kept) ** 0.5
            x0 = network(torch, x, *level)
            eps = (x - level[0] * x0) / level[1]
        raw = eps if over_alpha else said(told, x0, eps, *level)
        x = peer.step(raw, t, x).prev_sample
    end = float(schedule.process.alpha(float(grid[-1]))) if over_alpha else 1.0
    assert apart(x.numpy() * end, ours(schedule, n, X)) < close


def test_ancestral_steps_of_a_chain(tmp_path):
    config = {"variance_type": "fixed_large", "clip_sample": False}
    peer, schedule = scheduler("DDPM", config, tmp_path)
    peer.set_timesteps(20)
    noise, generator, x = noises(19), torch.Generator().manual_seed(0), torch.tensor(X)
    for t in peer.timesteps[:19]:
        kept = peer.alphas_cumprod[int(t)]
        x0 = network(torch, x, kept**0.5, (1 - kept) ** 0.5)
        x = peer.step((x - kept**0.5 * x0) / (1 - kept) ** 0.5, t, x, generator=generator).prev_sample
    cut = schedule._replace(grid=lambda n: schedule.grid(n)[:-1])
    assert apart(x, ours(cut, 20, X, noise)) < 1e-5


def test_a_flow(tmp_path):
    peer, schedule = scheduler("FlowMatchEulerDiscrete", {"shift": 3.0}, tmp_path)
    peer.set_timesteps(10)
    x = torch.tensor(X)
    np.testing.assert_allclose(schedule.grid(10)[:-1] * schedule.label_scale, peer.timesteps, rtol=1e-6)
    for i, t in enumerate(peer.timesteps):
        x0 = network(torch, x, 1 - peer.sigmas[i], peer.sigmas[i])
        x = peer.step((x - x0) / peer.sigmas[i], t, x).prev_sample
    assert apart(x, ours(schedule, 10, X)) < 1e-5


@pytest.mark.parametrize(
    "name", [name.removesuffix("Scheduler") for name in (*KINDS, "FlowMatchEulerDiscreteScheduler")]
)
def test_the_defaults_are_those_of_diffusers(name, tmp_path):
    """A config that leaves every field out is read as one that diffusers wrote with all of its defaults."""
    _, written = scheduler(name, {}, tmp_path)
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": f"{name}Scheduler"}))
    empty = read_schedule(tmp_path / "scheduler_config.json")
    assert (written.solver, written.clip, written.label_scale) == (empty.solver, empty.clip, empty.label_scale)
    assert type(written.parameterization) is type(empty.parameterization)
    np.testing.assert_array_equal(written.grid(10), empty.grid(10))
    times = jnp.linspace(0.1, 1, 9)
    np.testing.assert_array_equal(written.process.log_snr(times), empty.process.log_snr(times))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "KarrasVeScheduler"}, "there is no KarrasVeScheduler; there are DDIMScheduler"),
        (
            {"_class_name": "DDIMScheduler", "thresholding": True, "colour": 3},
            "unknown colour=3; unsupported thresholding=True",
        ),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "steep"}, "beta_schedule='steep' is not supported"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "Eps cannot be used with"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}, "solver_type='heun' is not supported"),
    ],
)
def test_what_is_not_supported_is_named(config, named, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=named):
        read_schedule(tmp_path / "scheduler_config.json")


def test_more_steps_than_the_chain_has(tmp_path):
    _, schedule = scheduler("DDIM", {}, tmp_path)
    with pytest.raises(ValueError, match="between 1 and the chain's 1000, got 1001"):
        schedule.grid(1001)
