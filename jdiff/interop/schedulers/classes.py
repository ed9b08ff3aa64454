"""The scheduler classes of diffusers 0.42: the fields that each reads, with its defaults, and the names of older ones.

A field is in a class's table if the class reads it where a config has it, declared or not.
"""

import math
from typing import Any

TRAINED = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
LEADING = SPACED | {"timestep_spacing": "leading"}
ZERO_SNR = {"rescale_betas_zero_snr": False}
CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
# The ends of respaced levels are read wherever a config has them, though few classes declare them.
RESPACED = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
}
# So are those of dynamic shifting, by pipelines.
DYNAMIC = {
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
FLOW_SIGMAS = {"use_flow_sigmas": False, "flow_shift": 1.0}
MULTISTEP = {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True}
END = {"final_sigmas_type": "zero"}
DPM = TRAINED | THRESHOLD | RESPACED | FLOW_SIGMAS | DYNAMIC | MULTISTEP | END
DPM |= {"algorithm_type": "dpmsolver++", "lambda_min_clipped": -math.inf, "variance_type": None}
K_DIFFUSION = TRAINED | SPACED | RESPACED
EDM = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "prediction_type": "epsilon",
    "rho": 7.0,
}
COGVIDEOX = TRAINED | LATENT | LEADING | ZERO_SNR
COGVIDEOX |= {"beta_schedule": "scaled_linear", "set_alpha_to_one": True, "snr_shift_scale": 3.0}
DISTILLED = TRAINED | LATENT | ZERO_SNR
DISTILLED |= {"beta_schedule": "scaled_linear", "original_inference_steps": 50, "set_alpha_to_one": True}
DISTILLED |= CLIP | THRESHOLD | {"clip_sample": False}

DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": TRAINED | LEADING | ZERO_SNR | CLIP | THRESHOLD | {"set_alpha_to_one": True},
    "DDPMScheduler": TRAINED | LEADING | ZERO_SNR | CLIP | THRESHOLD | {"variance_type": "fixed_small"},
    "PNDMScheduler": TRAINED | LEADING | {"skip_prk_steps": False, "set_alpha_to_one": False},
    "LCMScheduler": DISTILLED | {"timestep_scaling": 10.0},
    "TCDScheduler": DISTILLED,
    "CogVideoXDDIMScheduler": COGVIDEOX,
    "DDPMWuerstchenScheduler": {"scaler": 1.0, "s": 0.008},
    "EulerDiscreteScheduler": K_DIFFUSION
    | ZERO_SNR
    | END
    | {"interpolation_type": "linear", "timestep_type": "discrete"},
    "EulerAncestralDiscreteScheduler": TRAINED | SPACED | ZERO_SNR,
    "HeunDiscreteScheduler": K_DIFFUSION | LATENT | CLIP | {"clip_sample": False},
    "KDPM2DiscreteScheduler": K_DIFFUSION | LATENT,
    "KDPM2AncestralDiscreteScheduler": K_DIFFUSION | LATENT,
    "LMSDiscreteScheduler": K_DIFFUSION,
    "DPMSolverMultistepScheduler": DPM | SPACED | ZERO_SNR | {"euler_at_final": False, "use_lu_lambdas": False},
    "DPMSolverSinglestepScheduler": DPM | {"lower_order_final": False},
    "DEISMultistepScheduler": TRAINED
    | SPACED
    | THRESHOLD
    | RESPACED
    | FLOW_SIGMAS
    | DYNAMIC
    | MULTISTEP
    | {"algorithm_type": "deis", "solver_type": "logrho"},
    "UniPCMultistepScheduler": TRAINED
    | SPACED
    | ZERO_SNR
    | THRESHOLD
    | RESPACED
    | FLOW_SIGMAS
    | DYNAMIC
    | MULTISTEP
    | END
    | {"solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None, "shift_terminal": None},
    "SASolverScheduler": TRAINED
    | SPACED
    | THRESHOLD
    | RESPACED
    | FLOW_SIGMAS
    | {
        "predictor_order": 2,
        "corrector_order": 2,
        "algorithm_type": "data_prediction",
        "lower_order_final": True,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "tau_func": None,
    },
    "EDMEulerScheduler": EDM | END,
    "EDMDPMSolverMultistepScheduler": EDM
    | END
    | THRESHOLD
    | MULTISTEP
    | {"algorithm_type": "dpmsolver++", "euler_at_final": False},
    "CosineDPMSolverMultistepScheduler": EDM
    | END
    | MULTISTEP
    | {"euler_at_final": False, "sigma_min": 0.3, "sigma_max": 500.0, "sigma_data": 1.0}
    | {"sigma_schedule": "exponential", "prediction_type": "v_prediction"},
    "FlowMatchEulerDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0}
    | RESPACED
    | DYNAMIC
    | {"invert_sigmas": False, "shift_terminal": None, "stochastic_sampling": False},
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
}
# Classes of older versions, and of other libraries' copies, by what they are called now.
RENAMED = {
    "FlaxPNDMScheduler": "PNDMScheduler",
    "FlaxDDIMScheduler": "DDIMScheduler",
    "FlaxDDPMScheduler": "DDPMScheduler",
    "FlaxLMSDiscreteScheduler": "LMSDiscreteScheduler",
    "FlaxEulerDiscreteScheduler": "EulerDiscreteScheduler",
    "FlaxDPMSolverMultistepScheduler": "DPMSolverMultistepScheduler",
    "DDIMParallelScheduler": "DDIMScheduler",
    "DDPMParallelScheduler": "DDPMScheduler",
}
# Values that one class reads as another, where a config comes from that other's.
READ_AS: dict[str, dict[str, dict[str, str]]] = {
    "DPMSolverMultistepScheduler": {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"),
    },
    "DEISMultistepScheduler": {
        "algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"),
        "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
    },
    "UniPCMultistepScheduler": {"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")},
}
READ_AS["DPMSolverSinglestepScheduler"] = READ_AS["DPMSolverMultistepScheduler"]
READ_AS["EDMDPMSolverMultistepScheduler"] = READ_AS["DPMSolverMultistepScheduler"]
READ_AS["CosineDPMSolverMultistepScheduler"] = READ_AS["DPMSolverMultistepScheduler"]
# What pipelines set of their scheduler's config, whatever it says.
SET_BY_PIPELINES: dict[str, dict[str, Any]] = {
    name: {"steps_offset": 1, "clip_sample": False}
    for name in (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionPipelineSafe",
        "StableDiffusionPAGPipeline",
        "StableDiffusionPAGImg2ImgPipeline",
        "StableDiffusionPAGInpaintPipeline",
        "LEditsPPPipelineStableDiffusion",
        "AltDiffusionPipeline",
        "AltDiffusionImg2ImgPipeline",
    )
}
SET_BY_PIPELINES |= {
    "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
    "StableDiffusionDiffEditPipeline": {"steps_offset": 1, "skip_prk_steps": True},
    "CycleDiffusionPipeline": {"steps_offset": 1},
}
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
CHAIN_PREDICTIONS = ("epsilon", "sample", "v_prediction")
# Of a class: what differs from class to class.
CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "DDPMScheduler": {
        "beta_schedule": (*BETA_SCHEDULES, "sigmoid"),
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "learned_range"),
    },
    "PNDMScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "EulerAncestralDiscreteScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "KDPM2DiscreteScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "KDPM2AncestralDiscreteScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "HeunDiscreteScheduler": {"beta_schedule": (*BETA_SCHEDULES, "exp")},
    "DPMSolverMultistepScheduler": {
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
        "solver_type": ("midpoint", "heun"),
        "solver_order": (1, 2, 3),
        "prediction_type": (*CHAIN_PREDICTIONS, "flow_prediction"),
        "variance_type": (None, "fixed_small", "fixed_large"),  # only learned ones are read
    },
    "DPMSolverSinglestepScheduler": {
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
        "solver_order": (1, 2, 3),
        "prediction_type": (*CHAIN_PREDICTIONS, "flow_prediction"),
        "variance_type": (None, "fixed_small", "fixed_large"),
    },
    "DEISMultistepScheduler": {
        "algorithm_type": ("deis",),
        "solver_type": ("logrho",),
        "solver_order": (1, 2, 3),
        "prediction_type": (*CHAIN_PREDICTIONS, "flow_prediction"),
    },
    "UniPCMultistepScheduler": {
        "solver_type": ("bh1", "bh2"),
        "solver_order": (1, 2, 3, 4, 5),
        "prediction_type": (*CHAIN_PREDICTIONS, "flow_prediction"),
    },
    "SASolverScheduler": {
        "algorithm_type": ("data_prediction", "noise_prediction"),
        "prediction_type": (*CHAIN_PREDICTIONS, "flow_prediction"),
        "variance_type": (None, "fixed_small", "fixed_large"),
    },
    "EDMEulerScheduler": {"prediction_type": ("epsilon",)},
    "EDMDPMSolverMultistepScheduler": {
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
        "solver_order": (1, 2, 3),
        "prediction_type": ("epsilon",),
    },
    "CosineDPMSolverMultistepScheduler": {
        "solver_type": ("midpoint", "heun"),
        "solver_order": (1, 2),
        "prediction_type": ("v_prediction",),
        "sigma_data": (1.0, 1),
    },
}
for _fields in CHOICES.values():
    _fields.setdefault("prediction_type", CHAIN_PREDICTIONS)
