"""Exponential Runge-Kutta methods: several evaluations a step, none kept.

With l = log(alpha / sigma) and h = l_s - l_t, a method evaluates at nodes l_t + c_i h (c_1 = 0). The state at a node
and at the end (c = 1) is DDIM's and something for the differences of the values v_i there from the first (x0 or eps),

    x_c = alpha_c x0_t + sigma_c eps_t + scale_c h sum_j a_j(z) (v_j - v_1),

with scale = alpha, z = -h in data prediction and scale = -sigma, z = h in noise prediction. The a_j are made of
phi_1(z) = (e^z - 1) / z, phi_2(z) = (phi_1(z) - 1) / z, ... (Hochbruck and Ostermann 2005, SIAM J. Numer. Anal. 43).

DPM-Solver-2 and -3 (Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2) are such methods of eps, DPM-Solver++(2S)
(arXiv:2211.01095, algorithm 1) of x0. Order 1 of either is DDIM. DPM-Solver-2 is also what is called DPM2: the midpoint
rule in rho = sigma / alpha with its midpoint in log rho. DPM-Solver-3 is Hochbruck and Ostermann's (5.8) for c_2 = 1/3.

RES (Zhang et al. 2023, arXiv:2308.02157) asks for weights that integrate a linear x0 exactly, sum_j b_j c_j = phi_2(z)
(the stiff order conditions); DPM-Solver++(2S) has phi_1(z) / 2 there, which is the same for h -> 0 only.
"""

import abc
import dataclasses
from typing import Literal, NamedTuple, final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, evaluate
from jdiff.samplers.multistep import Space, half_log_snr, phi, steps
from jdiff.typing import Array, Denoiser


class Stages(NamedTuple):
    """The plan of a method of k evaluations, m steps."""

    t: Array  # [m]: where the steps begin
    times: Array  # [m, k]: of the other evaluations, and where the steps end
    mix: Array  # [m, k, k - 1]: factors of v_2 - v_1, ... at those times, with zeros for what comes later


class ExponentialRungeKutta(Solver):
    """A solver that is its tableau. A step of infinite length (from zero SNR, to the data) is DDIM's."""

    space: Space  # which prediction is combined

    @abc.abstractmethod
    def tableau(self, z: Array) -> tuple[list[float], list[list[Array]]]:
        """The inner nodes c_2, ..., and for each from c_3 to the end the a_2(z), ... [m] of the evaluations before."""

    def plan(self, process: Process, grid: Array) -> Stages:
        h, finite = steps(process, grid)
        nodes, rows = self.tableau(-h if self.space == "x0" else h)
        half = half_log_snr(process, grid)
        # Where a step has no length, its inner evaluations, which count for nothing, are made at its finite end.
        start = jnp.where(jnp.isfinite(half[:-1]), half[:-1], half[1:])
        inner = process.time(2 * (start[:, None] + h[:, None] * jnp.asarray(nodes, grid.dtype)))
        times = jnp.concatenate([inner, grid[1:, None]], axis=1)
        scale = process.alpha(times) if self.space == "x0" else -process.sigma(times)
        zero = jnp.zeros_like(h)
        factors = [[*row, *[zero] * (len(nodes) - len(row))] for row in [[], *rows]]
        mix = jnp.stack([jnp.stack(row, axis=1) for row in factors], axis=1)
        return Stages(grid[:-1], times, (scale * jnp.where(finite, h, 0)[:, None])[..., None] * mix)

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: tuple[()], plan: Stages, noise: Noise
    ) -> tuple[Array, tuple[()]]:
        _, first = evaluate(denoise, process, x, plan.t)
        differences = jnp.zeros((plan.mix.shape[-1], *x.shape), x.dtype)
        state = lambda i: (
            process.perturb(first.x0, first.eps, plan.times[i]) + jnp.tensordot(plan.mix[i], differences, axes=1)
        )
        for i in range(len(differences)):
            value = getattr(evaluate(denoise, process, state(i), plan.times[i])[1], self.space)
            differences = differences.at[i].set(value - getattr(first, self.space))
        return state(-1), carry


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver(ExponentialRungeKutta):
    """Single-step DPM-Solver ("eps") or DPM-Solver++ ("x0") of order 2 or 3, with as many evaluations a step."""

    order: Literal[2, 3] = dataclasses.field(metadata={"static": True})
    """Order and evaluations a step: 2 with its node in the middle, or 3 with nodes at the thirds."""
    space: Space = dataclasses.field(default="eps", metadata={"static": True})
    """Which prediction is combined."""

    def __post_init__(self):
        if self.order not in (2, 3):
            raise ValueError(f"DPMSolver needs order 2 or 3, got {self.order}; order 1 is DDIM")
        if self.space not in ("x0", "eps"):
            raise ValueError(f"DPMSolver needs space 'x0' or 'eps', got {self.space!r}")

    @property
    def nfe_per_step(self) -> int:
        return self.order

    def tableau(self, z: Array) -> tuple[list[float], list[list[Array]]]:
        if self.order == 2:
            return [1 / 2], [[phi(1, z)]]
        c2, c3 = 1 / 3, 2 / 3
        return [c2, c3], [[c3**2 / c2 * phi(2, c3 * z)], [jnp.zeros_like(z), phi(2, z) / c3]]


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class RES(ExponentialRungeKutta):
    """Refined exponential solver of order 2 or 3, with as many evaluations a step."""

    order: Literal[2, 3] = dataclasses.field(metadata={"static": True})
    """Order and evaluations a step."""

    space = "x0"

    def __post_init__(self):
        if self.order not in (2, 3):
            raise ValueError(f"RES needs order 2 or 3, got {self.order}; order 1 is DDIM")

    @property
    def nfe_per_step(self) -> int:
        return self.order

    def tableau(self, z: Array) -> tuple[list[float], list[list[Array]]]:
        c2 = 1 / 2
        if self.order == 2:
            return [c2], [[phi(2, z) / c2]]
        c3, share = 1.0, 4.0  # 2 (share c2 + c3) = 3 (share c2^2 + c3^2), the condition for order 3
        a32 = share * c2 * phi(2, c2 * z) + c3**2 / c2 * phi(2, c3 * z)
        last = phi(2, z) / (share * c2 + c3)
        return [c2, c3], [[a32], [share * last, last]]
