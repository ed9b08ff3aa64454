"""Schedulers as they were published: each is accepted and draws as diffusers does, or is refused by name.

The important ones stand here; beside a checkout with a folder of published configs, all of those are read as well.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from jdiff.interop.schedulers import read_schedule, schedule_of
from jdiff.interop.schedulers.classes import RENAMED
from tests.interop.trajectories import apart, ours, peer_class, theirs

SHARED = Path(__file__).parents[2].parent / "shared" / "published"
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "trained_betas": None}
SD |= {"num_train_timesteps": 1000, "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True}
SD |= {"clip_sample": False}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
FLUX = FLOW | {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
WAN = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
WAN |= {"disable_corrector": [], "final_sigmas_type": "zero", "predict_x0": True, "solver_p": None, "solver_order": 2}
WAN |= {"thresholding": False, "sample_max_value": 1.0, "dynamic_thresholding_ratio": 0.995, "solver_type": "bh2"}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
COSINE = {"sigma_min": 0.3, "sigma_max": 500, "sigma_data": 1.0, "sigma_schedule": "exponential"}
COGVIDEOX = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "set_alpha_to_one": True}
SVD = {"timestep_spacing": "leading", "timestep_type": "continuous", "prediction_type": "v_prediction"}
SVD |= {"sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True, "interpolation_type": "linear"}
XL = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "interpolation_type": "linear"}
PUBLISHED = {
    "stable diffusion 1.5": SD | {"_class_name": "PNDMScheduler"},
    "stable diffusion 2.1": SD | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "stable diffusion xl 1.0": SD | XL | {"sample_max_value": 1.0, "use_karras_sigmas": False},
    "sdxl turbo": SD | XL | {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
    "stable diffusion 3": FLOW | {"shift": 3.0},
    "flux dev": FLUX | {"shift": 3.0, "use_dynamic_shifting": True},
    "flux schnell": FLUX | {"shift": 1.0, "use_dynamic_shifting": False},
    "qwen-image": FLUX
    | {"shift": 1.0, "use_dynamic_shifting": True, "shift_terminal": 0.02, "max_shift": 0.9}
    | {"max_image_seq_len": 8192},
    "wan 2.1, 480p": WAN | {"flow_shift": 3.0},
    "wan 2.1, 720p": WAN | {"flow_shift": 5.0},
    "lcm dreamshaper 7": SD | {"_class_name": "LCMScheduler", "original_inference_steps": 50, "set_alpha_to_one": True},
    "dreamshaper 8": SD
    | {"_class_name": "DEISMultistepScheduler", "algorithm_type": "deis", "solver_type": "logrho", "solver_order": 2},
    "dpm-solver": SD
    | {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": float("-inf"), "variance_type": None},
    "playground 2.5": EDM | {"_class_name": "EDMDPMSolverMultistepScheduler"},
    "stable audio": COSINE | {"_class_name": "CosineDPMSolverMultistepScheduler", "prediction_type": "v_prediction"},
    "cogvideox 5b": SD
    | COGVIDEOX
    | {"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 1.0, "steps_offset": 0}
    | {"timestep_spacing": "trailing"},
    "stable video diffusion": SD | SVD | {"_class_name": "EulerDiscreteScheduler"},
    "stable cascade": {"_class_name": "DDPMWuerstchenScheduler", "s": 0.008, "scaler": 1.0},
    "ddpm cat": {"_class_name": "DDPMScheduler", "clip_sample": True, "variance_type": "fixed_small"},
    "a folder of flax": SD | {"_class_name": "FlaxPNDMScheduler"},
}
# What is refused of the published ones, and a word of the reason.
REFUSED = ("invert_sigmas", "is not JSON", "sigma_max")


def differences(config, monkeypatch, steps=(4, 20)):
    """The greatest difference of ends and of labels from diffusers'."""
    name = RENAMED.get(config["_class_name"], config["_class_name"])
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    found = []
    for n in steps:
        peer = peer_class(name).from_config(given)
        timesteps, end = theirs(peer, n, 1024, monkeypatch)
        labels, here = ours(config, n, 1024)
        found.append((apart(here, end), np.abs(labels - timesteps).max()))
    return np.max(found, axis=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_important_one_draws_as_diffusers(name, monkeypatch):
    end, labels = differences(PUBLISHED[name], monkeypatch)
    assert end < 1e-4 and labels < 0.01


@pytest.mark.skipif(not SHARED.exists(), reason="needs the folder of published configs")
def test_every_published_one_draws_as_diffusers_or_is_refused_by_name(monkeypatch):
    paths = [path for path in sorted(SHARED.rglob("*.json")) if path.name.startswith("scheduler")]
    seen, refused, wrong = set(), [], []
    for path in paths:
        try:
            read_schedule(path)
        except ValueError as error:
            refused.append(str(error))
            continue
        config = json.loads(path.read_text())
        fields = json.dumps(
            {key: value for key, value in config.items() if key != "_diffusers_version"}, sort_keys=True
        )
        if fields in seen:
            continue
        seen.add(fields)
        end, labels = differences(config, monkeypatch, steps=(20,))
        if not (end < 1e-4 and labels < 0.01):
            wrong.append((path, end, labels))
    assert len(seen) > 40 and not wrong, wrong
    unexpected = [reason for reason in refused if not any(word in reason for word in REFUSED)]
    assert len(refused) < 10 and not unexpected, unexpected


def test_pipelines_set_fields_of_their_scheduler():
    """Stable Diffusion's pipeline raises `steps_offset` to 1 and does not clip, whatever an old config says."""
    config = {"_class_name": "DDIMScheduler", **SD, "steps_offset": 0, "clip_sample": True}
    alone, within = (schedule_of(config, "config", pipeline=kind) for kind in (None, "StableDiffusionPipeline"))
    label = lambda schedule: float(schedule.table(10).process.labels[-1])
    assert (label(alone), label(within)) == (900, 901)
    assert alone.limit is not None and within.limit is None


def test_the_class_of_the_index_counts():
    config = SD | {"_class_name": "PNDMScheduler"}
    schedule = schedule_of(config, "config", kind="EulerDiscreteScheduler")
    labels, here = ours(config, 10, kind="EulerDiscreteScheduler")
    assert schedule.table(10).solver.space == "eps" and len(labels) == 10
    assert apart(here, ours(config | {"_class_name": "EulerDiscreteScheduler"}, 10)[1]) == 0
