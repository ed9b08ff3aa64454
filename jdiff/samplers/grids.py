"""Time grids: decreasing arrays [n] of a process's times, n >= 2, float32 unless told otherwise.

A grid of n times is n - 1 solver steps and the last evaluation at its end that `sample` returns as data: n evaluations
of a one-evaluation solver, 2 n - 1 of Heun's, which is EDM's way of counting steps. All run from t_max to t_min, but
the spacings of a T-step chain (`leading`, `trailing`), which leave out one of them as published. Grids that are
optimized for a denoiser: `align.py` and `search.py`.
"""

import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.typing import Array


def _unit(n: int) -> np.ndarray:
    """0, 1/(n - 1), ..., 1 in float64."""
    if n < 2:
        raise ValueError(f"a grid needs n >= 2 times, got {n}")
    return np.linspace(0.0, 1.0, n)


def _between(process: Process, inner: Array) -> Array:
    """Puts the exact ends of the span where rounding has moved them."""
    t_min, t_max = process.time_span
    return inner.at[0].set(t_max).at[-1].set(t_min)


def _fractions(process: Process, fraction: np.ndarray, dtype) -> Array:
    """The times at fractions [n] of the way from t_max to t_min."""
    t_min, t_max = process.time_span
    return _between(process, t_max + jnp.asarray(fraction, dtype) * (t_min - t_max))


def uniform(process: Process, n: int, dtype=jnp.float32) -> Array:
    """Equal steps in t."""
    return _fractions(process, _unit(n), dtype)


def quadratic(process: Process, n: int, dtype=jnp.float32) -> Array:
    """Equal steps in sqrt(t): DDIM's quadratic spacing (arXiv:2010.02502, appendix D.2)."""
    t_min, t_max = process.time_span
    low, high = (jnp.sqrt(jnp.asarray(end, dtype)) for end in (t_min, t_max))
    return _between(process, (high + jnp.asarray(_unit(n), dtype) * (low - high)) ** 2)


def beta(process: Process, n: int, a: float = 0.6, b: float = 0.6, dtype=jnp.float32) -> Array:
    """Quantiles in t of a beta distribution, which is dense at both ends for a, b < 1 (arXiv:2407.12173)."""
    require((a > 0) & (b > 0), f"beta needs a > 0 and b > 0, got {a} and {b}")
    return _fractions(process, 1 - betaincinv(a, b, 1 - _unit(n)), dtype)


def linear_quadratic(process: Process, n: int, threshold: float = 0.025, dtype=jnp.float32) -> Array:
    """Half of the steps equal over the first `threshold` of the way, the others growing (arXiv:2410.13720, fig. 10).

    Raises ValueError where that would not be a growth.
    """
    step = _unit(n) * (n - 1)
    linear = (n - 1) // 2
    most = max(linear, 1) / (n - 1)
    require(
        0 < threshold < most,
        f"linear_quadratic needs a threshold over 0 and below {most:g} for {n} times, got {threshold}",
    )
    if linear == 0:
        return uniform(process, n, dtype)
    slope = threshold / linear  # of the linear part, with which the parabola begins
    rest = n - 1 - linear
    curve = (1 - threshold - slope * rest) / rest**2
    beyond = np.maximum(step - linear, 0)
    fraction = slope * np.minimum(step, linear) + slope * beyond + curve * beyond**2
    return _fractions(process, fraction, dtype)


def _log_snr_span(process: Process, dtype) -> tuple[Array, Array]:
    t_min, t_max = process.time_span
    ends = process.log_snr(jnp.asarray([t_min, t_max], dtype))
    require(
        jnp.isfinite(ends).all(),
        f"this grid needs a finite log-SNR at both ends of {process}, got {ends}; use the uniform grid",
    )
    return ends[0], ends[1]


def log_snr(process: Process, n: int, dtype=jnp.float32) -> Array:
    """Equal steps in the log signal-to-noise ratio: "exponential", for sigma / alpha falls by one factor each step.

    Raises ValueError where the ratio is zero (zero terminal SNR).
    """
    unit = jnp.asarray(_unit(n), dtype)
    clean, noisy = _log_snr_span(process, dtype)
    return _between(process, process.time(noisy + unit * (clean - noisy)))


def karras(process: Process, n: int, rho: float = 7.0, dtype=jnp.float32) -> Array:
    """Equal steps in (sigma / alpha)^(1 / rho) (Karras et al. 2022, arXiv:2206.00364, eq. 5).

    Raises ValueError where sigma / alpha is infinite (zero terminal SNR).
    """
    unit = jnp.asarray(_unit(n), dtype)
    clean, noisy = (jnp.exp(-end / (2 * rho)) for end in _log_snr_span(process, dtype))
    return _between(process, process.time(-2 * rho * jnp.log(noisy + unit * (clean - noisy))))


def _chain(steps: np.ndarray, total: int, dtype) -> Array:
    """Times of the steps, 0 to T - 1, of a chain."""
    return jnp.asarray((steps + 1) / total, dtype)


def _chain_length(process: Process, n: int) -> int:
    total = getattr(process, "steps", None)
    if total is None:
        raise ValueError(f"this grid is of a T-step chain (processes.Chain), got {type(process).__name__}")
    if not 2 <= n <= total:
        raise ValueError(f"a grid of a chain of {total} steps needs 2 <= n <= {total} times, got {n}")
    return total


def leading(process: Process, n: int, dtype=jnp.float32) -> Array:
    """Every (T // n)-th step of a chain from the first one: DDIM's spacing, which does not reach t_max.

    Samples then start from less noise than the prior has (arXiv:2305.08891, section 3.3).
    """
    total = _chain_length(process, n)
    return _chain(np.arange(n)[::-1] * (total // n), total, dtype)


def linspace(process: Process, n: int, dtype=jnp.float32) -> Array:
    """Steps of a chain from its last to its first, equally spaced and rounded."""
    total = _chain_length(process, n)
    return _chain(np.round(_unit(n)[::-1] * (total - 1)), total, dtype)


def trailing(process: Process, n: int, dtype=jnp.float32) -> Array:
    """Every (T / n)-th step of a chain from the last one, without the first (arXiv:2305.08891, table 2)."""
    total = _chain_length(process, n)
    return _chain(np.round(np.arange(total, 0, -total / n)[:n]) - 1, total, dtype)


GRIDS = {
    "uniform": uniform,
    "quadratic": quadratic,
    "beta": beta,
    "linear_quadratic": linear_quadratic,
    "log_snr": log_snr,
    "exponential": log_snr,  # its name in k-diffusion and diffusers
    "karras": karras,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
}
