"""Heun's method (explicit trapezoid) for the probability-flow ODE, in the process's own time.

With the EDM process and a Karras grid it is algorithm 1 of Karras et al. 2022 (arXiv:2206.00364).
"""

import dataclasses
from typing import Any, final

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, Times, evaluate
from jdiff.typing import Array, Denoiser


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """Order 2, two evaluations a step."""

    order = 2
    nfe_per_step = 2

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Times, noise: Noise
    ) -> tuple[Array, Any]:
        t, s = plan
        x, prediction = evaluate(denoise, process, x, t)
        first = prediction.velocity(process, t)
        second = evaluate(denoise, process, x + (s - t) * first, s)[1].velocity(process, s)
        return x + (s - t) * (first + second) / 2, carry
