"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): exponential multistep in the half log-SNR.

With l = log(alpha / sigma), h = l_s - l_t and r = h_previous / h,
x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) D,  D = x0 + (x0 - x0_previous) / (2 r). The first step is of order 1.
"""

import dataclasses
from typing import NamedTuple, final

import jax
import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.samplers.base import Solver
from jdiff.typing import Array, Denoiser, Key


class _History(NamedTuple):
    x0: Array  # the previous step's prediction
    h: Array  # the previous step's width in half log-SNR; infinite before the first, which makes that one first order


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMpp2M(Solver):
    """Order 2, one evaluation a step."""

    order = 2
    nfe_per_step = 1

    def init(self, x: Array) -> _History:
        return _History(jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype))

    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: _History, t: Array, s: Array, keys: Key
    ) -> tuple[Array, _History]:
        x0 = denoise(x, t).x0
        h = (process.log_snr(s) - process.log_snr(t)) / 2
        # From zero SNR h is infinite and history empty: infinity over infinity must not be formed.
        slope = jnp.where(jnp.isinf(carry.h), 0, h / (2 * carry.h))
        mixed = x0 + slope * (x0 - carry.x0)
        x = (process.sigma(s) / process.sigma(t)) * x - process.alpha(s) * jnp.expm1(-h) * mixed
        return x, _History(x0, h)
