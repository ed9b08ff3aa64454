"""DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16) for any process.

x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 var) eps + eta sqrt(var) z, with var the variance of the posterior
q(x_s | x_t, x0). eta = 0 is deterministic and runs towards more noise, too (inversion, arXiv:2105.05233); eta = 1 is
ancestral sampling with the posterior's variance.
"""

import dataclasses
from typing import Any, final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.processes.base import is_plain, require
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, Times, evaluate
from jdiff.typing import Array, Denoiser


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(Solver):
    """Order 1 (weak and strong for eta > 0), one evaluation a step."""

    eta: float = 0.0
    """Share of the posterior's standard deviation drawn anew at each step, from 0 to 1."""

    order = 1
    nfe_per_step = 1

    @property
    def stochastic(self) -> bool | Array:
        return self.eta > 0

    @property
    def strong_order(self) -> float | None:
        return 1.0 if is_plain(self) and self.eta > 0 else None

    def __post_init__(self):
        require(not is_plain(self) or (self.eta >= 0) & (self.eta <= 1), f"DDIM needs 0 <= eta <= 1, got {self.eta}")

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Times, noise: Noise
    ) -> tuple[Array, Any]:
        t, s = plan
        x, prediction = evaluate(denoise, process, x, t)
        log_ratio = process.log_snr(t) - process.log_snr(s)
        fresh = -jnp.expm1(log_ratio)  # the posterior's variance over sigma_s^2; what is left is exp(log_ratio)
        kept = jnp.exp(log_ratio) + (1 - self.eta**2) * fresh
        direction = jnp.sqrt(kept) * prediction.eps + self.eta * jnp.sqrt(jnp.maximum(fresh, 0)) * noise.between(t, s)
        return process.alpha(s) * prediction.x0 + process.sigma(s) * direction, carry
