"""DEIS (Zhang and Chen 2022, arXiv:2204.13902, section 3.3) and the linear multistep method of k-diffusion (LMS).

With rho = sigma / alpha, y = x / alpha follows dy/drho = eps. Adams-Bashforth replaces eps over a step by the
polynomial through its last values: in t (tAB), in rho (rhoAB) or in log rho, and integrates it exactly. The paper
counts the degree, so that tAB3 combines four values; in log rho, which is what diffusers has, the order is counted.

rhoAB3 with unequal steps is LMS of order 4, and iPNDM with variable-step weights (iPNDM_v): one method, for all of them
are Adams-Bashforth of dy/drho. The code that introduced the last of these has a bracket misplaced in its weights of
third and fourth order, and differs from it. Where t is rho (EDM, VE), tAB is that method, too.
"""

import dataclasses
from typing import Literal, final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.multistep import Multistep, exponential_adams, half_log_snr, lagrange, past, quadrature
from jdiff.typing import Array


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DEIS(Multistep):
    """Adams-Bashforth in eps, one evaluation a step, of the order that it is given."""

    variable: Literal["t", "rho", "log_rho"] = dataclasses.field(metadata={"static": True})
    """What eps is a polynomial of."""
    order: int = dataclasses.field(default=4, metadata={"static": True})
    """The number of values that a step combines: the polynomial's degree and one."""

    space = "eps"

    def __post_init__(self):
        if self.variable not in ("t", "rho", "log_rho"):
            raise ValueError(f"DEIS needs variable 't', 'rho' or 'log_rho', got {self.variable!r}")
        if self.order < 1:
            raise ValueError(f"DEIS needs order >= 1, got {self.order}")

    @property
    def memory(self) -> int:
        return self.order

    def weights(self, process: Process, grid: Array) -> Array:
        if self.variable != "rho":
            variable = (lambda half: process.time(2 * half)) if self.variable == "t" else (lambda half: half)
            return exponential_adams(process, grid, self.order, "eps", variable)
        rho = jnp.exp(-half_log_snr(process, grid))
        nodes, exists = past(rho, self.order)
        finite = jnp.isfinite(rho[:-1])
        nodes = jnp.where(finite[:, None], nodes, rho[1:, None])
        # Polynomials, for which a few points are exact. The data, rho = 0, can be reached.
        integral = quadrature(nodes[:, 0], rho[1:], lambda at: lagrange(nodes, exists, at), points=self.order)
        return jnp.where(exists & finite[:, None], process.alpha(grid[1:])[:, None] * integral, 0)[:, 1:]
