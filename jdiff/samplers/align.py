"""Align your steps (Sabour et al. 2024, arXiv:2404.14507): the grid that a denoiser and data ask for.

A step from t to s that keeps the data predicted at t follows another reverse SDE than the model's. By Girsanov, their
KL divergence is 1/2 int E |D(x_r, r) - D(x_t, t)|^2 dSNR(r) over the step, with x_r and x_t on one forward path. This
bound adds up over steps, so the best grid among given candidates is a shortest path, found by dynamic programming and
not by descent.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import rng
from jdiff.processes import Process
from jdiff.typing import Array, Denoiser, Key


def step_costs(keys: Key, denoise: Denoiser, process: Process, x0: Array, candidates: Array) -> Array:
    """The bound, in nats, of a step from candidate i to candidate j > i: [K, K], infinite elsewhere.

    Args:
      keys: one key an example, [B], for the noise of its path.
      denoise: (x [B, ...], t []) -> Prediction.
      x0: data [B, ...].
      candidates: decreasing times [K].
    """
    rising = candidates[::-1]

    def forward(x, row):
        """From time s to the next, t, of one path, and what is predicted there."""
        number, s, t = row
        ratio = process.alpha(t) / process.alpha(s)
        spread = jnp.sqrt(process.sigma(t) ** 2 - (ratio * process.sigma(s)) ** 2)
        x = ratio * x + spread * rng.normal(rng.numbered(keys, number), x)
        return x, denoise(x, t).x0

    first = process.perturb(x0, rng.normal(rng.named(keys, "first"), x0), rising[0])
    rows = jnp.arange(len(rising) - 1), rising[:-1], rising[1:]
    _, predicted = jax.lax.scan(forward, first, rows)
    # The mean changes no distance and costs digits.
    every = jnp.concatenate([denoise(first, rising[0]).x0[None], predicted])[::-1] - x0.mean(axis=0)
    flat = every.reshape(len(candidates), -1)
    square = jnp.sum(flat**2, axis=1)
    apart = jnp.maximum(square[:, None] + square - 2 * flat @ flat.T, 0) / len(x0)
    snr = jnp.exp(process.log_snr(candidates))
    # Trapezia over the candidates' cells, from i up to j.
    cells = (apart[:, :-1] + apart[:, 1:]) / 2 * jnp.diff(snr) / 2
    total = jnp.concatenate([jnp.zeros((len(candidates), 1), cells.dtype), jnp.cumsum(cells, axis=1)], axis=1)
    cost = total - jnp.diagonal(total)[:, None]
    return jnp.where(jnp.triu(jnp.ones_like(cost, bool), 1), cost, jnp.inf)


def align(keys: Key, denoise: Denoiser, process: Process, x0: Array, n: int, candidates: Array) -> Array:
    """The n of the candidates, first and last among them, whose steps have the least bound: a decreasing grid [n].

    Some hundred candidates from `grids.log_snr`, and as many data as make the expectation steady, will do. Raises
    ValueError for n < 2 or more than there are candidates.
    """
    if not 2 <= n <= len(candidates):
        raise ValueError(f"n must be from 2 to the number of candidates, {len(candidates)}, got {n}")
    cost = np.asarray(jax.jit(step_costs, static_argnums=(1,))(keys, denoise, process, x0, candidates), np.float64)
    best, before = np.where(np.arange(len(cost)) == 0, 0.0, np.inf), []
    for _ in range(n - 1):
        through = best[:, None] + cost
        before.append(through.argmin(axis=0))
        best = through.min(axis=0)
    chosen = [len(cost) - 1]
    for step in reversed(before):
        chosen.append(int(step[chosen[-1]]))
    return candidates[jnp.asarray(chosen[::-1])]
