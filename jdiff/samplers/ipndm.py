"""Pseudo linear multistep methods: DDIM's step with a combination of the last values of eps, whatever the steps.

iPNDM (arXiv:2204.13902, appendix) takes the weights of Adams-Bashforth for equal steps: (3, -1) / 2, (23, -16, 5) / 12,
(55, -59, 37, -9) / 24. They are of their order where steps are equal in rho = sigma / alpha. Elsewhere eps is averaged
over a step as if rho were linear in the step's number, an error of order 2 for any number of values.

Gradient estimation (Permenter and Yuan 2023, arXiv:2306.04848, algorithm 1) takes gamma eps + (1 - gamma) eps_previous,
gamma = 2, to correct the estimate of the direction to the data. gamma = 3/2 is iPNDM of two values, every other one is
of order 1.
"""

import dataclasses
from typing import final

import jax.numpy as jnp
import numpy as np

from jdiff.processes import Process
from jdiff.processes.base import is_plain, require
from jdiff.pytree import pytree
from jdiff.samplers.multistep import Multistep, whole
from jdiff.typing import Array


def adams_bashforth(k: int) -> np.ndarray:
    """Weights [k], the newest first, that integrate a polynomial through 0, -1, ..., 1 - k exactly from 0 to 1."""
    power = np.arange(k)[:, None]
    return np.linalg.solve((-np.arange(k, dtype=float)) ** power, 1 / (power[:, 0] + 1))


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class IPNDM(Multistep):
    """Order 2, one evaluation a step; of the order `values` where steps are equal in sigma / alpha."""

    values: int = dataclasses.field(default=4, metadata={"static": True})
    """How many values a step combines, once there are so many."""

    space = "eps"

    def __post_init__(self):
        if self.values < 1:
            raise ValueError(f"IPNDM needs values >= 1, got {self.values}")

    @property
    def order(self) -> int:
        return min(self.values, 2)

    @property
    def memory(self) -> int:
        return self.values

    def weights(self, process: Process, grid: Array) -> Array:
        rows = np.zeros((self.values, self.values))
        for k in range(self.values):
            rows[k, : k + 1] = adams_bashforth(k + 1)
        number = jnp.minimum(jnp.arange(grid.shape[0] - 1), self.values - 1)
        return whole(process, grid, "eps")[:, None] * jnp.asarray(rows[:, 1:], grid.dtype)[number]


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientEstimation(Multistep):
    """Order 1, one evaluation a step."""

    gamma: float = 2.0
    """Weight of the newest eps; 1 is DDIM."""

    order = 1
    space = "eps"
    memory = 2

    def __post_init__(self):
        require(not is_plain(self) or self.gamma > 0, f"GradientEstimation needs gamma > 0, got {self.gamma}")

    def weights(self, process: Process, grid: Array) -> Array:
        return ((1 - self.gamma) * whole(process, grid, "eps")).at[0].set(0)[:, None]
