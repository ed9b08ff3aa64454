"""Time grids: decreasing arrays [n] from the process's t_max to its t_min, n >= 2, float32 unless told otherwise.

A grid of n times is n - 1 solver steps and the last evaluation at t_min that `sample` returns as data: n evaluations of
a one-evaluation solver, 2 n - 1 of Heun's, which is EDM's way of counting steps.
"""

import jax.numpy as jnp

from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.typing import Array


def _unit(n: int, dtype) -> Array:
    if n < 2:
        raise ValueError(f"a grid needs n >= 2 times, got {n}")
    return jnp.linspace(0.0, 1.0, n, dtype=dtype)


def _between(process: Process, inner: Array) -> Array:
    """Puts the exact ends of the span where rounding has moved them."""
    t_min, t_max = process.time_span
    return inner.at[0].set(t_max).at[-1].set(t_min)


def uniform(process: Process, n: int, dtype=jnp.float32) -> Array:
    """Equal steps in t."""
    t_min, t_max = process.time_span
    return _between(process, t_max + _unit(n, dtype) * (t_min - t_max))


def _log_snr_span(process: Process, dtype) -> tuple[Array, Array]:
    t_min, t_max = process.time_span
    ends = process.log_snr(jnp.asarray([t_min, t_max], dtype))
    require(
        jnp.isfinite(ends).all(),
        f"this grid needs a finite log-SNR at both ends of {process}, got {ends}; use the uniform grid",
    )
    return ends[0], ends[1]


def log_snr(process: Process, n: int, dtype=jnp.float32) -> Array:
    """Equal steps in the log signal-to-noise ratio. Raises ValueError where that is infinite (zero terminal SNR)."""
    clean, noisy = _log_snr_span(process, dtype)
    return _between(process, process.time(noisy + _unit(n, dtype) * (clean - noisy)))


def karras(process: Process, n: int, rho: float = 7.0, dtype=jnp.float32) -> Array:
    """Equal steps in (sigma / alpha)^(1 / rho) (Karras et al. 2022, arXiv:2206.00364, eq. 5).

    Raises ValueError where sigma / alpha is infinite (zero terminal SNR).
    """
    clean, noisy = (jnp.exp(-end / (2 * rho)) for end in _log_snr_span(process, dtype))
    return _between(process, process.time(-2 * rho * jnp.log(noisy + _unit(n, dtype) * (clean - noisy))))


GRIDS = {"uniform": uniform, "karras": karras, "log_snr": log_snr}
