"""ER-SDE solvers (Cui et al. 2023, arXiv:2309.06169): the noise of the reverse SDE by a function of the noise level.

With r = sigma / alpha and a noise scale phi(r), y = x / alpha is solved from r_t to r_s by (eq. 14 and 16)

    y_s = phi(r_s) / phi(r_t) y_t + int x0 dw + sqrt(r_s^2 - (r_t phi(r_s) / phi(r_t))^2) z,  w(r) = -phi(r_s) / phi(r),

where x0 is replaced by a polynomial in r. phi = r is the probability-flow ODE, phi = r^2 the time reversal; theirs is
phi(r) = r (e^(r^0.3) + 10). The published third order takes the first derivative from two values and the second from
three: this one takes the parabola through all three.
"""

import dataclasses
from typing import final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.sde_multistep import LogFade, StochasticMultistep, stochastic_adams
from jdiff.typing import Array


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class ERSDE(StochasticMultistep):
    """Weak order 1, or 2 with two values or three, one evaluation a step.

    Three values gain an order over two for as long as the noise is small beside the step's error: their phi leaves
    little of it (tau^2 is 0.06 where r is small). The error falls with the third power to some hundred steps; the term
    of second order, which one normal number a step cannot do without, is all that is left beyond some thousand.
    """

    memory: int = dataclasses.field(default=3, metadata={"static": True})
    """How many of the last values of x0 a step combines, 1 to 3: the name's number."""

    stochastic = True

    def __post_init__(self):
        if self.memory not in (1, 2, 3):
            raise ValueError(f"ERSDE needs a memory of 1, 2 or 3, got {self.memory}")

    @property
    def order(self) -> int:
        return min(self.memory, 2)

    def log_fade(self, process: Process, grid: Array) -> LogFade:
        scale = lambda at: jnp.log(jnp.exp(jnp.exp(-0.3 * at)) + 10)
        return lambda at, end: scale(end) - scale(at)

    def weights(self, process: Process, grid: Array) -> tuple[Array, Array]:
        return stochastic_adams(process, grid, self.memory, self.log_fade(process, grid), lambda at: jnp.exp(-at))
