"""Second-order ancestral sampling, as in k-diffusion, for any process.

With y = x / alpha and r = sigma / alpha, dy/dr = eps is solved from r_t to r_down, and noise goes up to r_s again:
r_up^2 = r_s^2 (1 - r_s^2 / r_t^2), the posterior's variance, and r_down = r_s^2 / r_t, which keeps the true marginals.
The middle of that way in log r is r_s, so that the second evaluation is at s. DPM-Solver-2 takes its eps for the whole
way down (`sample_dpm_2_ancestral`), DPM-Solver++ 2S its x0 (`sample_dpmpp_2s_ancestral`). One Euler step down
(`sample_euler_ancestral`) is DDIM with eta = 1 exactly, whatever the process: `ddim.py`.
"""

import dataclasses
from typing import Any, Literal, final

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.base import Noise, Solver, Times, evaluate
from jdiff.typing import Array, Denoiser


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral2(Solver):
    """Weak order 2, two evaluations a step. In "eps", a step from zero SNR is of first order."""

    space: Literal["x0", "eps"] = dataclasses.field(default="eps", metadata={"static": True})
    """Which prediction in the middle stands for the whole way: DPM-Solver-2 "eps", DPM-Solver++ 2S "x0"."""

    order = 2
    strong_order = 1.0
    stochastic = True
    nfe_per_step = 2

    def __post_init__(self):
        if self.space not in ("x0", "eps"):
            raise ValueError(f"Ancestral2 needs the space 'x0' or 'eps', got {self.space!r}")

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Times, noise: Noise
    ) -> tuple[Array, Any]:
        t, s = plan
        x, first = evaluate(denoise, process, x, t)
        inner = jnp.where(process.sigma(s) == 0, t, s)  # on the way to the data, the first evaluation once more
        _, middle = evaluate(denoise, process, process.perturb(first.x0, first.eps, inner), inner)
        alpha, sigma = process.alpha(s), process.sigma(s)
        h = (process.log_snr(s) - process.log_snr(t)) / 2
        if self.space == "x0":
            down = sigma / process.sigma(t) * jnp.exp(-h) * x - alpha * jnp.expm1(-2 * h) * middle.x0
        else:
            turn = jnp.where(jnp.isfinite(h), -2 * jnp.sinh(h), 0)
            down = alpha * first.x0 + sigma * (jnp.exp(-h) * first.eps + turn * (middle.eps - first.eps))
        return down + sigma * jnp.sqrt(-jnp.expm1(-2 * h)) * noise.between(t, s), carry
