"""What a solver is: frozen values, a carry made by `init`, and a `step` from time t to a smaller time s.

The step receives the denoiser, so several evaluations are plain code, and one key a sample, so that a sample's noise
does not depend on its batch. Times may be traced; alpha may be zero at t.
"""

import abc
from typing import Any, ClassVar

from jdiff.processes import Process
from jdiff.typing import Array, Denoiser, Key


class Solver(abc.ABC):
    """One numerical method for the reverse process. Its values are frozen dataclasses registered as pytrees."""

    order: ClassVar[int]  # of convergence: of the end point for an ODE method, of the moments (weak) for an SDE method
    nfe_per_step: ClassVar[int]  # network evaluations a step

    def init(self, x: Array) -> Any:
        """The carry before the first step, for samples x [B, ...]; empty for a one-step method."""
        return ()

    @abc.abstractmethod
    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, t: Array, s: Array, keys: Key
    ) -> tuple[Array, Any]:
        """x_s and the next carry from x = x_t [B, ...]; t > s are scalars, keys [B] are this step's."""
