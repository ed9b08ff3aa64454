"""Validation of scheduler configs: the fields that a class reads, their defaults and allowed values.

A field that the class does not read is ignored, as its own code does: configs are handed from class to class, and carry
what others read. It is logged at DEBUG. A field that it does read is honoured, or refused by its name.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

from jdiff.interop.schedulers.classes import (
    BETA_SCHEDULES,
    CHAIN_PREDICTIONS,
    CHOICES,
    DEFAULTS,
    DYNAMIC,
    READ_AS,
    RENAMED,
    SET_BY_PIPELINES,
)
from jdiff.interop.schedulers.levels import Fields

LOG = logging.getLogger("jdiff")
MOST_TIMESTEPS = 100_000


def _number(low: float, high: float, *, whole: bool = False, infinite: bool = False) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        kinds = int if whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        return (low <= value <= high) or (infinite and value == -math.inf)

    return holds


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is one or (value == one and type(value) is type(one)) for one in values)


def _betas(value: Any) -> bool:
    between = _number(0, 1)
    return value is None or (
        isinstance(value, list)
        and 2 <= len(value) <= MOST_TIMESTEPS
        and all(between(beta) and 0 < beta < 1 for beta in value)
    )


def _maybe(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


FLAG = (_one_of(True, False, None), "true or false")
# Fields, what holds of a value, and how that reads.
ALLOWED: list[tuple[str, Callable[[Any], bool], str]] = [
    ("num_train_timesteps", _number(2, MOST_TIMESTEPS, whole=True), f"a whole number from 2 to {MOST_TIMESTEPS}"),
    ("beta_start beta_end", _number(1e-12, 0.9999), "a number between 0 and 1"),
    ("trained_betas", _betas, "null, or a list of numbers between 0 and 1"),
    ("timestep_spacing", _one_of("linspace", "leading", "trailing"), "linspace, leading or trailing"),
    ("steps_offset", _number(0, 1000, whole=True), "a whole number from 0 to 1000"),
    ("clip_sample_range sample_max_value", _number(1e-6, 1e6), "a positive number"),
    ("dynamic_thresholding_ratio", _number(0, 1), "a number between 0 and 1"),
    ("sigma_min sigma_max", _maybe(_number(1e-8, 1e6)), "null or a positive number"),
    ("sigma_data rho shift flow_shift snr_shift_scale scaler s timestep_scaling", _number(1e-6, 1e6), "positive"),
    ("base_shift max_shift", _number(-100, 100), "a number"),
    ("base_image_seq_len max_image_seq_len", _number(1, 1e9, whole=True), "a positive whole number"),
    ("shift_terminal", _maybe(_number(0, 0.9999)), "null or a number between 0 and 1"),
    ("original_inference_steps", _number(1, MOST_TIMESTEPS, whole=True), "a positive whole number"),
    ("predictor_order corrector_order", _number(1, 4, whole=True), "a whole number from 1 to 4"),
    ("lambda_min_clipped", _number(-1e6, 1e6, infinite=True), "a number"),
    ("final_sigmas_type", _one_of("zero", "sigma_min"), "zero or sigma_min"),
    ("sigma_schedule", _one_of("karras", "exponential"), "karras or exponential"),
    ("interpolation_type", _one_of("linear", "log_linear"), "linear or log_linear"),
    ("timestep_type", _one_of("discrete", "continuous"), "discrete or continuous"),
    ("time_shift_type", _one_of("exponential", "linear"), "exponential or linear"),
    ("tau_func solver_p", _one_of(None), "null"),
    ("invert_sigmas", _one_of(False, None), "false"),
    (
        "disable_corrector",
        lambda value: isinstance(value, list) and all(_number(0, 1e6, whole=True)(i) for i in value),
        "a list of steps",
    ),
]
CHECKS = {name: (holds, text) for names, holds, text in ALLOWED for name in names.split()}
# Fields that count only beside another one.
READ_BESIDE = {
    "clip_sample_range": ("clip_sample",),
    "dynamic_thresholding_ratio": ("thresholding",),
    "sample_max_value": ("thresholding",),
    "flow_shift": ("use_flow_sigmas",),
    "shift_terminal": ("use_flow_sigmas",),
    "sigma_min": ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
    "sigma_max": ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
}
READ_BESIDE |= {name: ("use_dynamic_shifting",) for name in DYNAMIC if name != "use_dynamic_shifting"}


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _rule(kind: str, name: str) -> tuple[Callable[[Any], bool], str]:
    choices = CHOICES.get(kind, {}).get(name)
    choices = choices or {"beta_schedule": BETA_SCHEDULES, "prediction_type": CHAIN_PREDICTIONS}.get(name)
    if choices:
        return _one_of(*choices), " or ".join(dict.fromkeys(_shown(choice) for choice in choices))
    return CHECKS.get(name, FLAG)


def class_of(name: Any) -> str:
    """The class that is meant. Raises ValueError for one that is not known, with those that are."""
    known = RENAMED.get(name, name) if isinstance(name, str) else None
    if known not in DEFAULTS:
        raise ValueError(f"there is no scheduler class {_shown(name)}; there are {', '.join(DEFAULTS)}")
    return known


def fields_of(kind: str, config: Fields, pipeline: str | None = None) -> dict[str, Any]:
    """The fields that class `kind` reads, defaults for those that are absent, as `pipeline` sets them.

    Raises ValueError for all that are not supported, with the values that are.
    """
    defaults = DEFAULTS[kind]
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    ignored = sorted(given.keys() - defaults.keys())
    if ignored:
        LOG.debug("%s does not read %s", kind, ", ".join(ignored))
    meant = READ_AS.get(kind, {})
    fields = defaults | {name: given[name] for name in given.keys() & defaults.keys()}
    fields |= {name: value for name, value in SET_BY_PIPELINES.get(pipeline or "", {}).items() if name in defaults}
    for name, others in meant.items():
        if isinstance(fields.get(name), str):
            fields[name] = others.get(fields[name], fields[name])
    problems = []
    for name, value in fields.items():
        holds, text = _rule(kind, name)
        beside = [flag for flag in READ_BESIDE.get(name, ()) if flag in fields]
        read = not beside or any(fields[flag] for flag in beside)
        if read and not holds(value):
            problems.append(f"{name}={_shown(value)} is not supported (must be {text})")
    if problems:
        raise ValueError("; ".join(problems))
    problems = list(_together(kind, fields))
    if problems:
        raise ValueError("; ".join(problems))
    return fields


def _together(kind: str, fields: Fields) -> Iterable[str]:
    """Yields combinations that diffusers refuses, or whose factors are not finite there."""
    respaced = [name for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if fields.get(name)]
    respaced += ["use_lu_lambdas"] if fields.get("use_lu_lambdas") else []
    if len(respaced) > 1:
        yield f"only one of {', '.join(respaced)} can be true"
    flow, told = fields.get("use_flow_sigmas"), fields.get("prediction_type")
    if flow and respaced and (kind != "UniPCMultistepScheduler" or respaced != ["use_karras_sigmas"]):
        yield f"use_flow_sigmas cannot go with {respaced[0]}"
    if told == "flow_prediction" and not flow:
        yield 'prediction_type="flow_prediction" needs use_flow_sigmas'
    if flow and told == "v_prediction":
        yield 'use_flow_sigmas cannot go with prediction_type="v_prediction"'
    algorithm, order = fields.get("algorithm_type"), fields.get("solver_order")
    if algorithm in ("dpmsolver", "sde-dpmsolver") and (
        fields["final_sigmas_type"] == "zero" or told == "flow_prediction"
    ):
        yield f'algorithm_type="{algorithm}" needs final_sigmas_type="sigma_min" and a prediction that is no velocity'
    if algorithm == "sde-dpmsolver" and order == 3:
        yield 'algorithm_type="sde-dpmsolver" has order 1 or 2'
    if algorithm == "sde-dpmsolver++" and order == 3 and kind == "EDMDPMSolverMultistepScheduler":
        yield 'algorithm_type="sde-dpmsolver++" has order 1 or 2 in this class'
    of_data = fields.get("predict_x0", True) and algorithm != "noise_prediction"
    if told == "flow_prediction" and not of_data:
        yield 'prediction_type="flow_prediction" needs the prediction of data'
    if fields.get("shift_terminal") is not None and not fields.get("use_flow_sigmas", True):
        yield "shift_terminal needs use_flow_sigmas"
    if fields.get("rescale_betas_zero_snr") and told == "epsilon":
        yield 'rescale_betas_zero_snr leaves nothing to read x0 from: prediction_type "epsilon" cannot go with it'
    low, high = fields.get("sigma_min"), fields.get("sigma_max")
    if kind.startswith("FlowMatch") and respaced and any(end is not None and end > 1 for end in (low, high)):
        yield f"sigma_min={low} and sigma_max={high} must lie below 1 in a flow"
    if low is not None and high is not None and low >= high:
        yield f"sigma_min={low} must be below sigma_max={high}"
    if fields.get("thresholding") and fields.get("sample_max_value", 1.0) < 1:
        yield "sample_max_value must be at least 1"
    if fields.get("original_inference_steps", 1) > fields.get("num_train_timesteps", MOST_TIMESTEPS):
        yield "original_inference_steps must not exceed num_train_timesteps"
    if (
        fields.get("use_dynamic_shifting")
        and fields["time_shift_type"] == "linear"
        and kind.startswith(("DPM", "DEIS"))
    ):
        yield 'time_shift_type="linear" is not supported in this class'
    if fields.get("use_dynamic_shifting") and fields["base_image_seq_len"] >= fields["max_image_seq_len"]:
        yield "base_image_seq_len must be below max_image_seq_len"
