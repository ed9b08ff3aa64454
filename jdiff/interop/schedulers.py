"""A scheduler_config.json of diffusers as a process, a parameterization, a grid and a solver.

A chain's timestep i is the time (i + 1) / T (`processes.Chain`). What goes by different names there is one method here:
its state alpha x0 + sigma eps, or that over alpha, is a matter of scale, which no solver in sigma / alpha sees.

Not taken over: orders that are lowered over the last steps but one, and PNDM's first step, which is taken twice.

Their grids end at the data, or, with `set_alpha_to_one` false, at the noise of timestep 0. Its spacings are published
as whole timesteps; a fractional one has the sigma between its neighbours', ours the log-SNR.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jdiff.prediction import X0, Eps, Parameterization, V, Velocity
from jdiff.processes import (
    Chain,
    Process,
    RectifiedFlow,
    ZeroTerminalSNR,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)
from jdiff.samplers import (
    DDIM,
    DDPM,
    DEIS,
    IPNDM,
    PNDM,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp3M,
    DPMSolver2M,
    Euler,
    Solver,
    UniPC,
    karras,
)
from jdiff.typing import Array


class Schedule(NamedTuple):
    """What a scheduler does."""

    process: Process
    parameterization: Parameterization
    solver: Solver
    grid: Callable[[int], Array]
    """The times [n + 1] of n evaluations: the last one is where a sample ends, without another evaluation."""
    label_scale: float
    """What the process's noise label is multiplied by to be what the network is told."""
    clip: float | None
    """The predicted data is clipped to this range, as in the published samplers of DDPM."""


Fields = Mapping[str, Any]
PREDICTIONS: dict[str, Parameterization] = {"epsilon": Eps(), "sample": X0(), "v_prediction": V()}
BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}


def _pick(fields: Fields, name: str, table: Mapping[Any, Any]) -> Any:
    if fields[name] not in table:
        raise ValueError(f"{name}={fields[name]!r} is not supported; there are {', '.join(map(str, table))}")
    return table[fields[name]]


def _multistep(fields: Fields) -> Solver:
    order, algorithm = fields["solver_order"], fields["algorithm_type"]
    methods = {
        ("dpmsolver++", 1): DDIM(),
        ("dpmsolver++", 2): DPMpp2M(),
        ("dpmsolver++", 3): DPMpp3M(published=True),
        ("dpmsolver", 1): DDIM(),
        ("dpmsolver", 2): DPMSolver2M(),
        ("sde-dpmsolver++", 2): DPMpp2MSDE(),
    }
    if (algorithm, order) not in methods or fields["solver_type"] != "midpoint":
        raise ValueError(
            f"algorithm_type={algorithm!r} of order {order} and solver_type={fields['solver_type']!r} is not supported;"
            f" there are {', '.join(f'{name} of order {n}' for name, n in methods)}, all midpoint"
        )
    return methods[algorithm, order]


def _unipc(fields: Fields) -> Solver:
    if not fields["predict_x0"] or fields["disable_corrector"]:
        raise ValueError("UniPC is supported with predict_x0 and its corrector in every step")
    return UniPC(p=fields["solver_order"], variant=_pick(fields, "solver_type", {"bh1": "bh1", "bh2": "bh2"}))


def _ddpm(fields: Fields) -> Solver:
    kinds = {"fixed_small": "beta_tilde", "fixed_small_log": "beta_tilde", "fixed_large": "beta"}
    return DDPM(variance=_pick(fields, "variance_type", kinds))


class Kind(NamedTuple):
    """A scheduler class: its fields with their defaults, its solver, and what its timesteps are counted over."""

    defaults: dict[str, Any]
    solver: Callable[[Fields], Solver]
    extra: int = 0  # 1 where the spacings are those of one more evaluation, whose last is left out
    whole: bool = True  # whether the timesteps of "linspace" are rounded
    fixed: Mapping[str, Any] = MappingProxyType({})  # fields that are supported at one value


COMMON = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0}
PLAIN = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
SIGMAS = {"use_karras_sigmas": False}
NO_SIGMAS = {"use_exponential_sigmas": False, "use_beta_sigmas": False, "use_flow_sigmas": False, "flow_shift": 1.0}
ENDS = {"lower_order_final": True, "final_sigmas_type": "zero"}
DPM = COMMON | SIGMAS | ENDS | {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
KINDS = {
    "DDIMScheduler": Kind(
        COMMON | CLIPPED | {"timestep_spacing": "leading", "set_alpha_to_one": True},
        lambda fields: DDIM(),
        fixed=PLAIN | {"thresholding": False},
    ),
    "DDPMScheduler": Kind(
        COMMON | CLIPPED | {"timestep_spacing": "leading", "variance_type": "fixed_small"}, _ddpm, fixed=PLAIN
    ),
    "PNDMScheduler": Kind(
        COMMON | {"timestep_spacing": "leading", "skip_prk_steps": False, "set_alpha_to_one": False},
        # Without Runge and Kutta's start, orders grow from one, as in iPNDM.
        lambda fields: IPNDM() if fields["skip_prk_steps"] else PNDM(),
    ),
    "EulerDiscreteScheduler": Kind(
        COMMON | SIGMAS | {"final_sigmas_type": "zero"},
        lambda fields: DDIM(),
        whole=False,
        fixed={
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "sigma_min": None,
            "sigma_max": None,
        },
    ),
    "EulerAncestralDiscreteScheduler": Kind(COMMON, lambda fields: DDIM(eta=1.0), whole=False),
    "LMSDiscreteScheduler": Kind(
        COMMON | SIGMAS,
        lambda fields: DEIS(variable="rho"),
        whole=False,
        fixed={"use_exponential_sigmas": False, "use_beta_sigmas": False},
    ),
    "DPMSolverMultistepScheduler": Kind(
        DPM,
        _multistep,
        extra=1,
        fixed=PLAIN
        | NO_SIGMAS
        | {
            "euler_at_final": False,
            "use_lu_lambdas": False,
            "lambda_min_clipped": -np.inf,
            "variance_type": None,
            "use_dynamic_shifting": False,
            "time_shift_type": "exponential",
        },
    ),
    "UniPCMultistepScheduler": Kind(
        COMMON
        | SIGMAS
        | ENDS
        | {"solver_order": 2, "solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None},
        _unipc,
        extra=1,
        fixed=PLAIN
        | NO_SIGMAS
        | {
            "use_dynamic_shifting": False,
            "time_shift_type": "exponential",
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
        },
    ),
}
FLOW = {"num_train_timesteps": 1000, "shift": 1.0}
FLOW_FIXED = {
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "time_shift_type": "exponential",
    "stochastic_sampling": False,
}


def read_schedule(path: Path) -> Schedule:
    """The schedule of a scheduler_config.json.

    Raises ValueError for a class that is not known, and for fields that are not known or not supported, all of them.
    """
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return schedule_of(config, str(path))


def schedule_of(config: Fields, source: str) -> Schedule:
    """The schedule of the fields of a scheduler_config.json, which errors say to be of `source`. Raises ValueError as
    `read_schedule` does."""
    name = config.get("_class_name")
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    # Every scheduler writes these, whether it reads them or not.
    skipped = {
        "skip_prk_steps",
        "clip_sample",
        "set_alpha_to_one",
        "steps_offset",
        "trained_betas",
        "clip_sample_range",
    }
    try:
        if name == "FlowMatchEulerDiscreteScheduler":
            return _flow(_checked(given, FLOW, FLOW_FIXED, frozenset()))
        if name not in KINDS:
            raise ValueError(f"there is no {name}; there are {', '.join((*KINDS, 'FlowMatchEulerDiscreteScheduler'))}")
        kind = KINDS[name]
        return _chain(kind, _checked(given, kind.defaults, kind.fixed, frozenset(skipped - kind.defaults.keys())))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _checked(given: Fields, defaults: Fields, fixed: Fields, ignored: frozenset) -> Fields:
    """The fields with their defaults. Raises ValueError for all that are not known or not supported."""
    problems = [
        f"unknown {key}={given[key]!r}" for key in sorted(given.keys() - defaults.keys() - fixed.keys() - ignored)
    ]
    problems += [
        f"unsupported {key}={given[key]!r} (supported: {value!r})"
        for key, value in fixed.items()
        if key in given and given[key] != value and key not in ("sample_max_value", "dynamic_thresholding_ratio")
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return {**defaults, **{key: value for key, value in given.items() if key in defaults}}


def _process(fields: Fields) -> Process:
    if fields["trained_betas"] is not None:
        betas = np.asarray(fields["trained_betas"], np.float64)
    elif fields["beta_schedule"] == "squaredcos_cap_v2":
        betas = cosine_betas(fields["num_train_timesteps"])
    else:
        make = _pick(fields, "beta_schedule", BETAS)
        betas = make(fields["num_train_timesteps"], fields["beta_start"], fields["beta_end"])
    chain = Chain.from_betas(betas)
    return ZeroTerminalSNR(process=chain) if fields["rescale_betas_zero_snr"] else chain


def _timesteps(kind: Kind, fields: Fields, n: int) -> np.ndarray:
    """The timesteps [n] of n evaluations, decreasing."""
    total, spacing, count = fields["num_train_timesteps"], fields["timestep_spacing"], n + kind.extra
    if not 1 <= n <= total:
        raise ValueError(f"steps must lie between 1 and the chain's {total}, got {n}")
    if spacing == "linspace":
        steps = np.linspace(0, total - 1, count)[::-1]
        return (steps.round() if kind.whole else steps)[:n]
    if spacing == "leading":
        return (np.arange(count)[::-1] * (total // count))[:n] + fields["steps_offset"]
    if spacing == "trailing":
        return np.arange(total, 0, -total / n).round()[:n] - 1
    raise ValueError(f"timestep_spacing={spacing!r} is not linspace, leading or trailing")


def _chain(kind: Kind, fields: Fields) -> Schedule:
    process, parameterization = _process(fields), _pick(fields, "prediction_type", PREDICTIONS)
    parameterization.check(process)
    to_data = fields.get("set_alpha_to_one", True) and fields.get("final_sigmas_type", "zero") == "zero"

    def grid(n: int) -> Array:
        if fields.get("use_karras_sigmas"):
            times = np.asarray(karras(process, n, dtype=jnp.float32), np.float64)
        else:
            times = (_timesteps(kind, fields, n) + 1) / fields["num_train_timesteps"]
        last = 0.0 if to_data else 1 / fields["num_train_timesteps"]
        return jnp.asarray(np.append(times, last) if times[-1] > last else times, jnp.float32)

    clip = fields["clip_sample_range"] if fields.get("clip_sample") else None
    return Schedule(process, parameterization, kind.solver(fields), grid, 1.0, clip)


def _flow(fields: Fields) -> Schedule:
    """sigma = t. Its published values are shifted twice, the ends once more than the others."""
    total, shift = fields["num_train_timesteps"], fields["shift"]
    moved = lambda sigma: shift * sigma / (1 + (shift - 1) * sigma)

    def grid(n: int) -> Array:
        if n < 1:
            raise ValueError(f"steps must be at least 1, got {n}")
        return jnp.asarray(np.append(moved(np.linspace(1.0, moved(1 / total), n)), 0.0), jnp.float32)

    process = RectifiedFlow(t_min=1 / total)
    return Schedule(process, Velocity(), Euler(), grid, float(total), None)
