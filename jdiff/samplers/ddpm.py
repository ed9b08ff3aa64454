"""Ancestral sampling (Ho et al. 2020, arXiv:2006.11239, algorithm 2) for any process and any grid.

x_s is drawn around the posterior's mean given the predicted x0, with the variance of q(x_s | x_t, x0) ("beta tilde"),
or with that of q(x_t | x_s) ("beta"): the lower and the upper bound on the reverse step's entropy.
"""

import dataclasses
from typing import Any, Literal, final

import jax
import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.samplers.base import Noise, Solver, Times, evaluate
from jdiff.typing import Array, Denoiser


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(Solver):
    """Weak order 1, one evaluation a step. "beta" needs a process that keeps some signal at its end."""

    variance: Literal["beta_tilde", "beta"] = dataclasses.field(default="beta_tilde", metadata={"static": True})
    """Variance of a step: the posterior's ("beta_tilde") or the forward step's ("beta")."""

    order = 1
    strong_order = 1.0
    stochastic = True
    nfe_per_step = 1

    def __post_init__(self):
        if self.variance not in ("beta_tilde", "beta"):
            raise ValueError(f"DDPM needs variance 'beta_tilde' or 'beta', got {self.variance!r}")

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Times, noise: Noise
    ) -> tuple[Array, Any]:
        t, s = plan
        x, prediction = evaluate(denoise, process, x, t)
        mean, variance = process.posterior(x, prediction.x0, s, t)
        if self.variance == "beta":
            variance = -jnp.expm1(process.log_snr(t) - process.log_snr(s)) * process.sigma(t) ** 2
        return mean + jnp.sqrt(variance) * noise.between(t, s), carry
