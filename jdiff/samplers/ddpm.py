"""Ancestral sampling (Ho et al. 2020, arXiv:2006.11239, algorithm 2) for any process and any grid.

x_s is drawn around the posterior's mean given the predicted x0, with the variance of q(x_s | x_t, x0) ("beta tilde"),
or with that of q(x_t | x_s) ("beta"): the lower and the upper bound on the reverse step's entropy. What lies between
them is said by the network for each value (arXiv:2102.09672, eq. 15), or has one optimal number (`analytic.py`).
"""

import dataclasses
from typing import Any, Literal, final, get_args

import jax.numpy as jnp

from jdiff.prediction import reverse_log_variance
from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.analytic import NoiseEnergy
from jdiff.samplers.base import Noise, Solver, Times, evaluate
from jdiff.typing import Array, Denoiser

Variance = Literal["beta_tilde", "beta", "learned", "analytic"]


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(Solver):
    """Weak order 1, one evaluation a step. All but "beta_tilde" need a process that keeps some signal at its end."""

    variance: Variance = dataclasses.field(default="beta_tilde", metadata={"static": True})
    """Variance of a step: the posterior's, the forward step's, the prediction's, or the one that `energy` implies."""
    energy: NoiseEnergy | None = None
    """For "analytic": what `noise_energy` has estimated."""

    order = 1
    strong_order = 1.0
    stochastic = True
    nfe_per_step = 1

    @property
    def needs_signal(self) -> bool:
        return self.variance != "beta_tilde"

    def __post_init__(self):
        if self.variance not in get_args(Variance):
            raise ValueError(f"DDPM needs a variance of {', '.join(get_args(Variance))}, got {self.variance!r}")
        if (self.variance == "analytic") != (self.energy is not None):
            raise ValueError(
                f"DDPM needs an energy (`noise_energy`) for variance 'analytic' and for no other, got {self.variance!r}"
                f" and {'none' if self.energy is None else 'one'}"
            )

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Times, noise: Noise
    ) -> tuple[Array, Any]:
        t, s = plan
        x, prediction = evaluate(denoise, process, x, t)
        mean, variance = process.posterior(x, prediction.x0, s, t)
        fresh = -jnp.expm1(process.log_snr(t) - process.log_snr(s))
        if self.variance == "beta":
            variance = fresh * process.sigma(t) ** 2
        elif self.energy is not None:
            unknown = 1 - self.energy.at(process, t)  # of x0, over (sigma_t / alpha_t)^2
            variance += (process.alpha(s) * fresh * process.sigma(t) / process.alpha(t)) ** 2 * unknown
        elif self.variance == "learned":
            if prediction.variance is None:
                raise ValueError(
                    "DDPM(variance='learned') needs a prediction with a variance, got None: sample a network that was "
                    "trained with LearnedVariance, or take 'beta_tilde' or 'beta'"
                )
            variance = jnp.exp(reverse_log_variance(process, s, t, prediction.variance))
        return mean + jnp.sqrt(variance) * noise.between(t, s), carry
