"""Euler's method for the probability-flow ODE dx/dt = alpha' x0 + sigma' eps, in the process's own time."""

import dataclasses
from typing import Any, final

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, Times, evaluate
from jdiff.typing import Array, Denoiser


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(Solver):
    """Order 1, one evaluation a step."""

    order = 1
    nfe_per_step = 1

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Times, noise: Noise
    ) -> tuple[Array, Any]:
        t, s = plan
        x, prediction = evaluate(denoise, process, x, t)
        return x + (s - t) * prediction.velocity(process, t), carry
