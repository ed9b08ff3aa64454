"""The noise of the steps: drawn step by step, or read off one Brownian path whatever the grid.

In y = x / alpha the reverse SDE over a step is solved exactly, given x0, by an increment of one Brownian motion B whose
clock is the signal-to-noise ratio: y_s gains (sigma_s / alpha_s)^2 (B(SNR_s) - B(SNR_t)), whose variance is that of the
posterior q(x_s | x_t, x0). So one path of B serves every grid: steps refined on the same path converge to one sample,
which is what strong order measures, and a seed gives nearly the same picture at any number of steps.
"""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp

from jdiff import rng
from jdiff.processes import Process
from jdiff.samplers.base import Noise
from jdiff.typing import Array, Key

# (keys [B], process, like [B, ...]) -> (step number -> that step's noise, in the shape and dtype of `like`)
Source = Callable[[Key, Process, Array], Callable[[Array], Noise]]


def independent(keys: Key, process: Process, like: Array) -> Callable[[Array], Noise]:
    """Noise drawn anew at each step, row b from keys[b], the step's number and the part alone."""

    def of_step(number: Array) -> Noise:
        step_keys = rng.numbered(keys, number)
        fresh = lambda part=0: rng.normal(rng.numbered(step_keys, part), like)
        return Noise(between=lambda t, s, part=0: fresh(part), fresh=fresh)

    return of_step


def brownian(keys: Key, process: Process, like: Array) -> Callable[[Array], Noise]:
    """Increments of one Brownian path a sample (diffrax's virtual tree); fresh noise as `independent` draws it.

    An increment costs some eighty normal draws a value.
    """
    snr = lambda t: jnp.exp(process.log_snr(jnp.asarray(t, like.dtype)))
    least, most = snr(process.time_span[1]), snr(process.time_span[0])
    value = jax.ShapeDtypeStruct(like.shape[1:], like.dtype)

    def increment(key: Key, begin: Array, end: Array) -> Array:
        tolerance = 1e-3 * jnp.maximum(least, 1e-9 * most)
        tree = diffrax.VirtualBrownianTree(least, most, tolerance, value, key)
        return jnp.asarray(tree.evaluate(begin, end))

    def between(t: Array, s: Array, part: int = 0) -> Array:
        begin, end = jnp.clip(snr(t), least, most), jnp.clip(snr(s), least, most)
        return jax.vmap(increment, (0, None, None))(rng.named(keys, "path"), begin, end) / jnp.sqrt(end - begin)

    steps = independent(keys, process, like)
    return lambda number: Noise(between=between, fresh=steps(number).fresh)
