"""Analytic-DPM (Bao et al. 2022, arXiv:2201.06503): the reverse step's variance that maximizes the likelihood.

For an exact prediction, x_s given x_t has the mean of `Process.posterior` and, averaged over x_t and the values, the
variance (theorem 1, for the posterior's lambda)

    beta_tilde + (alpha_s fresh sigma_t / alpha_t)^2 (1 - sigma_t^2 Gamma(t)),   Gamma(t) = E|score(x_t)|^2 / d,

with fresh = 1 - SNR_t / SNR_s: what is uncertain about x0 is (sigma_t / alpha_t)^2 (1 - sigma_t^2 Gamma), and
sigma_t^2 Gamma = E|eps(x_t)|^2 / d lies between 0 and 1 (theorem 2). It is estimated once for a network.
"""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from jdiff import rng
from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.samplers.base import evaluate
from jdiff.typing import Array, Denoiser, Key


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseEnergy:
    """E|eps(x_t)|^2 / d at some times: sigma_t^2 Gamma(t)."""

    times: Array
    """[k], in any order."""
    values: Array
    """[k]. Those of several batches of one size are to be averaged."""

    def at(self, process: Process, t: Array) -> Array:
        """The value at t: the table's, or between two of its times linear in alpha / (alpha + sigma)."""
        share = lambda time: jax.nn.sigmoid(process.log_snr(time) / 2)
        nodes = share(self.times)
        order = jnp.argsort(nodes)
        return jnp.clip(jnp.interp(share(t), nodes[order], self.values[order]), 0, 1)


def noise_energy(keys: Key, x0: Array, denoise: Denoiser, process: Process, times: Array) -> NoiseEnergy:
    """Estimates E|eps(x_t)|^2 / d from data x0 [B, ...] at the times [k], one evaluation of the batch each.

    The noise of example b at the time number i is drawn from keys[b] and i alone.
    """
    if keys.ndim != 1 or keys.shape != x0.shape[:1]:
        raise ValueError(f"keys must have shape [B], one key an example, got {keys.shape} for data of {x0.shape}")
    named = rng.named(keys, "noise energy")

    def of_time(item: tuple[Array, Array]) -> Array:
        number, t = item
        x = process.perturb(x0, rng.normal(rng.numbered(named, number), x0), t)
        return jnp.mean(evaluate(denoise, process, x, t)[1].eps ** 2)

    times = jnp.asarray(times, x0.dtype)
    return NoiseEnergy(times=times, values=jax.lax.map(of_time, (jnp.arange(len(times)), times)))
