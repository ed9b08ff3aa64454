"""A scheduler_config.json of diffusers as a process, a parameterization and a sampler.

A folder draws with its own method, which `Schedule.table` makes to the number: the timesteps that the network is told,
levels, orders that are lowered at the ends, clipping and noise. Any solver of ours runs on the same levels with
`Schedule.process` and `Schedule.grid`: a chain's timestep i is the time (i + 1) / T (`processes.Chain`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jdiff.interop.schedulers import chain_steps, exponential_steps, flow_steps, levels, sa_steps, sigma_steps
from jdiff.interop.schedulers.fields import class_of, fields_of
from jdiff.interop.schedulers.levels import Fields
from jdiff.interop.schedulers.table import Table
from jdiff.json_files import read_object
from jdiff.prediction import X0, EDMPreconditioning, Eps, Parameterization, V, Velocity
from jdiff.processes import EDM, Chain, Nodes, Process, RectifiedFlow, ZeroTerminalSNR
from jdiff.samplers import Limit
from jdiff.typing import Array

# Scheduler class: (fields, evaluations, tokens) -> its table.
TABLES: dict[str, Callable[[Fields, int, int | None], Table]] = {
    "DDIMScheduler": chain_steps.ddim,
    "DDPMScheduler": chain_steps.ddpm,
    "PNDMScheduler": chain_steps.pndm,
    "LCMScheduler": chain_steps.lcm,
    "TCDScheduler": chain_steps.tcd,
    "CogVideoXDDIMScheduler": chain_steps.cogvideox_ddim,
    "DDPMWuerstchenScheduler": chain_steps.wuerstchen,
    "EulerDiscreteScheduler": sigma_steps.euler,
    "EulerAncestralDiscreteScheduler": sigma_steps.euler_ancestral,
    "HeunDiscreteScheduler": sigma_steps.heun,
    "KDPM2DiscreteScheduler": sigma_steps.dpm2,
    "KDPM2AncestralDiscreteScheduler": sigma_steps.dpm2_ancestral,
    "LMSDiscreteScheduler": sigma_steps.lms,
    "DPMSolverMultistepScheduler": exponential_steps.dpm_multistep,
    "DPMSolverSinglestepScheduler": exponential_steps.dpm_singlestep,
    "DEISMultistepScheduler": exponential_steps.deis,
    "UniPCMultistepScheduler": exponential_steps.unipc,
    "SASolverScheduler": sa_steps.sa_solver,
    "EDMEulerScheduler": exponential_steps.edm_euler,
    "EDMDPMSolverMultistepScheduler": exponential_steps.edm_multistep,
    "CosineDPMSolverMultistepScheduler": exponential_steps.cosine_multistep,
    "FlowMatchEulerDiscreteScheduler": flow_steps.flow_euler,
    "FlowMatchHeunDiscreteScheduler": flow_steps.flow_heun,
}
PREDICTIONS: dict[str, Parameterization] = {
    "epsilon": Eps(),
    "sample": X0(),
    "v_prediction": V(),
    "flow_prediction": Velocity(),
}


class Schedule(NamedTuple):
    """A published scheduler."""

    process: Process
    """In continuous time, for solvers of ours."""
    parameterization: Parameterization
    label_scale: float
    """Factor from the process's noise label to the network's."""
    limit: Limit | None
    """Limit of the predicted data."""
    table: Callable[..., Table]
    """(steps, tokens=None) -> the published sampler, whose process has the network's labels. `tokens`: of the picture,
    for a schedule that depends on its size. Raises ValueError for steps that the schedule has not."""
    dynamic: bool
    """True for a schedule that depends on the picture's size."""

    def grid(self, steps: int, tokens: int | None = None) -> Array:
        """Times of `process` at the levels of the published sampler, decreasing, float32."""
        table = self.table(steps, tokens)
        log_snr = table.process.log_snr(table.grid)
        inside = jnp.isfinite(log_snr)
        ends = jnp.where(log_snr > 0, 0.0, self.process.time_span[1])
        times = jnp.where(inside, self.process.time(jnp.where(inside, log_snr, 0.0)), ends)
        # The last of two that rounding made one is left out.
        times = np.asarray(jnp.minimum(times, self.process.time_span[1]), np.float32)
        return jnp.asarray(np.unique(times)[::-1])


def read_schedule(path: Path, *, kind: Any = None, pipeline: str | None = None) -> Schedule:
    """The schedule of a scheduler_config.json. `kind`: the class that model_index.json names, which counts, not the one
    that the config names. `pipeline`: the class that draws with it; some set fields of its config.

    Raises ValueError for a class that is not known, and for values that are not supported, all of them.
    """
    return schedule_of(read_object(path), str(path), kind=kind, pipeline=pipeline)


def schedule_of(config: Fields, source: str, *, kind: Any = None, pipeline: str | None = None) -> Schedule:
    """The schedule of the fields of a scheduler_config.json, which errors say to be of `source`. Raises ValueError as
    `read_schedule` does."""
    try:
        name = class_of(config.get("_class_name") if kind is None else kind)
        fields = fields_of(name, config, pipeline)
        process = _process(name, fields)
        told = _parameterization(name, fields)
        told.check(process)
        dynamic = bool(fields.get("use_dynamic_shifting"))
        table = lambda steps, tokens=None: TABLES[name](fields, steps, tokens)
        table(min(8, fields.get("original_inference_steps", 8), fields.get("num_train_timesteps", 8) - 1), 1024)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{source}: {error}") from error
    scale = float(fields["num_train_timesteps"]) if isinstance(process, RectifiedFlow) else 1.0
    return Schedule(process, told, scale, chain_steps.limit_of(fields), table, dynamic)


def _parameterization(kind: str, fields: Fields) -> Parameterization:
    if kind.startswith("FlowMatch"):
        return Velocity()
    if kind == "DDPMWuerstchenScheduler":
        return Eps()
    if kind.startswith("EDM"):
        return EDMPreconditioning(sigma_data=fields["sigma_data"])
    return PREDICTIONS[fields["prediction_type"]]


def _process(kind: str, fields: Fields) -> Process:
    if kind.startswith("FlowMatch") or fields.get("use_flow_sigmas"):
        return RectifiedFlow(t_min=1 / fields["num_train_timesteps"])
    if kind.startswith("EDM"):
        return EDM(sigma_min=fields["sigma_min"], sigma_max=fields["sigma_max"])
    if kind == "CosineDPMSolverMultistepScheduler":
        sigmas = np.geomspace(fields["sigma_min"], fields["sigma_max"], 1000)
        scale = 1 / np.sqrt(1 + sigmas**2)
        return Nodes.of(scale, sigmas * scale, np.arctan(sigmas) * 2 / np.pi)
    if kind == "DDPMWuerstchenScheduler":
        times = np.linspace(0, 1, 1001)[1:]
        kept = chain_steps.wuerstchen_kept(fields, times)
        return Nodes.of(np.sqrt(kept), np.sqrt(1 - kept), times)
    if kind == "CogVideoXDDIMScheduler":
        kept = chain_steps.cogvideox_kept(fields).astype(np.float64)
        return Nodes.of(np.sqrt(kept), np.sqrt(1 - kept), np.arange(len(kept)))
    kept = levels.alphas_cumprod({**fields, "rescale_betas_zero_snr": False})
    chain = Chain.from_alphas_cumprod(kept)
    return ZeroTerminalSNR(process=chain) if fields.get("rescale_betas_zero_snr") else chain
