"""The reverse SDE as score-based models discretize it (Song et al. 2021, arXiv:2011.13456).

Euler-Maruyama takes a step of dx = (f x - g^2 score) dt + g dW in the process's own time. The reverse diffusion sampler
(appendix E) undoes a step of the forward chain x_t = c x_s + G z, with c = alpha_t / alpha_s and
G^2 = sigma_t^2 - c^2 sigma_s^2, to first order:

    x_s = (2 - c) x_t + G^2 score + G z.
"""

import dataclasses
from typing import Any, final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, Times, evaluate
from jdiff.typing import Array, Denoiser


class _Reverse(Solver):
    order = 1
    strong_order = 1.0
    stochastic = True
    needs_signal = True
    nfe_per_step = 1


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerMaruyama(_Reverse):
    """Weak order 1, one evaluation a step. Needs a process that keeps some signal at its end."""

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Times, noise: Noise
    ) -> tuple[Array, Any]:
        t, s = plan
        x, prediction = evaluate(denoise, process, x, t)
        g = process.diffusion(t)
        backward = process.drift(x, t) - g**2 * prediction.score(process, t)
        return x + (s - t) * backward + g * jnp.sqrt(t - s) * noise.between(t, s), carry


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(_Reverse):
    """Weak order 1, one evaluation a step. Needs a process that keeps some signal at its end."""

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Times, noise: Noise
    ) -> tuple[Array, Any]:
        t, s = plan
        x, prediction = evaluate(denoise, process, x, t)
        variance = -jnp.expm1(process.log_snr(t) - process.log_snr(s)) * process.sigma(t) ** 2
        mean = (2 - process.alpha(t) / process.alpha(s)) * x + variance * prediction.score(process, t)
        return mean + jnp.sqrt(variance) * noise.between(t, s), carry
