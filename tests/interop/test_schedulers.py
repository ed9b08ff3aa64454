"""What a scheduler's config is read as: fields that its class reads, defaults of diffusers, refusals by name."""

import inspect
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.interop.schedulers import read_schedule, schedule_of
from jdiff.interop.schedulers.classes import DEFAULTS
from jdiff.pipelines.draw import limited, planned
from jdiff.prediction import Prediction
from jdiff.samplers import Clip, DynamicThreshold, integrate
from tests.interop.trajectories import peer_class
from tests.samplers.diffusers_tools import X, apart, diffusers, keys_of, network, torch

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {"_class_name": "DDIMScheduler", **SD}
# Read from configs though no class declares them: ends of respaced levels, and what pipelines take for dynamic shifts.
UNDECLARED = {"sigma_min", "sigma_max", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_are_those_of_diffusers(name):
    signature = inspect.signature(inspect.unwrap(peer_class(name).__init__)).parameters
    theirs = {field: parameter.default for field, parameter in signature.items() if field != "self"}
    ours = {field: value for field, value in DEFAULTS[name].items() if field in theirs or field not in UNDECLARED}
    assert ours.items() <= theirs.items()


def test_what_a_class_does_not_read_is_ignored_and_logged(caplog):
    others = {"interpolation_type": "linear", "sample_max_value": "high", "algorithm_type": None, "colour": 3}
    with caplog.at_level(logging.DEBUG, logger="jdiff"):
        schedule_of({"_class_name": "EulerAncestralDiscreteScheduler", **SD, **others}, "config")
    assert "does not read algorithm_type, colour, interpolation_type, sample_max_value" in caplog.text


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "KarrasVeScheduler"}, 'there is no scheduler class "KarrasVeScheduler"; there are DDIM'),
        ({"_class_name": ["DDIMScheduler"]}, r"there is no scheduler class \[\"DDIMScheduler\"\]"),
        ({}, "there is no scheduler class null"),
        (DDIM | {"beta_schedule": "steep"}, 'beta_schedule="steep" is not supported .must be "linear" or'),
        (DDIM | {"beta_schedule": "steep", "steps_offset": -1}, "beta_schedule=.*; .*steps_offset=-1"),
        (DDIM | {"rescale_betas_zero_snr": True}, 'prediction_type "epsilon" cannot go with it'),
        (DDIM | {"num_train_timesteps": 10**11}, "num_train_timesteps=100000000000 is not supported"),
        (DDIM | {"num_train_timesteps": 1000.0}, "num_train_timesteps=1000.0"),
        (DDIM | {"num_train_timesteps": True}, "num_train_timesteps=true"),
        (DDIM | {"beta_end": float("nan")}, "beta_end=NaN"),
        (DDIM | {"trained_betas": [0.1, "x"]}, r"trained_betas=\[0.1, \"x\"\]"),
        (DDIM | {"trained_betas": [0.5] * 2000}, "alphas_cumprod must decrease"),
        (DDIM | {"clip_sample": "no"}, 'clip_sample="no" is not supported .must be true or false'),
        (DDIM | {"clip_sample_range": None}, "clip_sample_range=null"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, 'needs final_sigmas_type="sig'),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "solver_order=4 .* 1 or 2 or 3"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas=true"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True, "sigma_max": 80.0},
            "sigma_max=80.0 must lie below 1",
        ),
    ],
)
def test_what_is_not_supported_is_named(config, named, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"scheduler_config.json: .*{named}"):
        read_schedule(tmp_path / "scheduler_config.json")


def test_a_field_counts_only_beside_what_makes_it_read():
    for config in ({"clip_sample": False, "clip_sample_range": None}, {"thresholding": False, "sample_max_value": -1}):
        schedule_of(DDIM | config, "config")


def test_steps_that_the_schedule_has_not():
    schedule = schedule_of(DDIM, "config")
    for n in (0, 1001):
        with pytest.raises(ValueError, match=f"between 1 and the chain's 1000, got {n}"):
            schedule.table(n)
    trailing = schedule_of(DDIM | {"timestep_spacing": "trailing"}, "config")
    with pytest.raises(ValueError, match="61 steps is published with one more, at timestep -1"):
        trailing.table(61)
    with pytest.raises(ValueError, match="at least 4 without skip_prk_steps, got 3"):
        schedule_of({"_class_name": "PNDMScheduler", **SD}, "config").table(3)
    flux = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    with pytest.raises(ValueError, match=r"use_dynamic_shifting: .* give its number of tokens"):
        schedule_of(flux, "config").table(10)


def test_a_solver_of_ours_runs_on_the_same_levels():
    """DDIM of ours without clipping is their DDIM where each step leads to the next."""
    schedule = schedule_of(DDIM | {"clip_sample": False}, "config")
    ours, theirs = planned(schedule, 10, "ddim"), planned(schedule, 10, None)
    np.testing.assert_allclose(ours.process.noise_label(ours.grid[:-1]), theirs.process.labels[:0:-1], atol=2e-3)

    def run(plan):
        def denoise(x, t):
            alpha, sigma = plan.process.alpha(t), plan.process.sigma(t)
            x0 = network(jnp, x, alpha, sigma)
            return Prediction(x0, (x - alpha * x0) / sigma)

        return integrate(keys_of(len(X)), jnp.asarray(X), denoise, plan.process, plan.solver, plan.grid)

    assert apart(jax.jit(run)(ours), jax.jit(run)(theirs)) < 1e-5


def test_limits_of_the_data():
    """diffusers' dynamic threshold on samples of unequal size; a limited prediction is still consistent with x."""
    x0 = (
        np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
        * np.array([0.1, 1, 3, 9])[:, None, None, None]
    )
    x0 = x0.astype(np.float32)
    config = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}
    peer = diffusers.DDIMScheduler(**config)
    limit = schedule_of({"_class_name": "DDIMScheduler", **config}, "config").limit
    assert isinstance(limit, DynamicThreshold)
    theirs = peer._threshold_sample(torch.tensor(x0)).numpy()
    np.testing.assert_allclose(limit(jnp.asarray(x0)), theirs, rtol=1e-6)
    process = schedule_of(DDIM, "config").process
    denoise = limited(lambda x, t: Prediction(3 * x, x), process, Clip(limit=0.5))
    x, t = jnp.asarray(x0), jnp.float32(0.4)
    prediction = denoise(x, t)
    np.testing.assert_allclose(process.perturb(prediction.x0, prediction.eps, t), x, atol=1e-5)
    assert float(jnp.abs(prediction.x0).max()) == 0.5
