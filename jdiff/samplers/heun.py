"""Heun's method (explicit trapezoid) for the probability-flow ODE, in the process's own time.

With the EDM process and a Karras grid it is algorithm 1 of Karras et al. 2022 (arXiv:2206.00364).
"""

import dataclasses
from typing import Any, final

import jax

from jdiff.processes import Process
from jdiff.samplers.base import Solver
from jdiff.typing import Array, Denoiser, Key


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """Order 2, two evaluations a step."""

    order = 2
    nfe_per_step = 2

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, t: Array, s: Array, keys: Key
    ) -> tuple[Array, Any]:
        first = denoise(x, t).velocity(process, t)
        second = denoise(x + (s - t) * first, s).velocity(process, s)
        return x + (s - t) * (first + second) / 2, carry
