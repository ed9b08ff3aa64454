"""What solvers are measured on: a process, a target, states at its noisy end, and where the exact flow takes them.

Everything is float64; JAX must have been told so (`jax_enable_x64`).
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from jdiff import oracles
from jdiff.processes import (
    EDM,
    VE,
    VP,
    Chain,
    Cosine,
    Process,
    RectifiedFlow,
    SubVP,
    ZeroTerminalSNR,
    flow_shift,
    linear_betas,
    linear_gamma,
    resolution_shift,
)
from jdiff.typing import Array

T = TypeVar("T")

# Processes by the names that the command line knows, with their usual settings.
PROCESSES: dict[str, Process] = {
    "vp": VP(),
    "subvp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "cosine": Cosine(),
    "shifted_cosine": resolution_shift(Cosine(), 256, 64),
    "flow": RectifiedFlow(),
    "shifted_flow": flow_shift(3.0),
    "zero_snr": ZeroTerminalSNR(process=VP()),
    "learned": linear_gamma(),
    "chain": Chain.from_betas(linear_betas()),
}
TARGETS = ("ringK", "gaussian", "mixture", "circle", "swiss_roll")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry of a table. Raises ValueError that lists the entries for a name that is none."""
    if name not in table:
        raise ValueError(f"there is no {what} {name!r}; there are {', '.join(table)}")
    return table[name]


def target(name: str) -> oracles.Distribution:
    """A target in the plane by its name.

    ringK (K modes of standard deviation 0.1 on the unit circle, as ring8), gaussian (anisotropic, off the origin),
    mixture (two unequal modes), circle (uniform, with noise of 0.1) or swiss_roll (a thousand points with noise).
    Raises ValueError for another name.
    """
    if ring := re.fullmatch(r"ring(\d+)", name):
        if int(ring[1]) < 1:
            raise ValueError(f"a ring needs at least one mode, got {name!r}")
        return oracles.ring(int(ring[1]), dtype=jnp.float64)
    if name == "gaussian":
        return oracles.gaussian(jnp.array([0.3, -0.2]), jnp.array([[0.7, 0.3], [0.3, 0.4]]))
    if name == "mixture":
        means, covariances = [[-0.8, 0.0], [0.7, 0.4]], [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]]
        return oracles.mixture(jnp.array([0.3, 0.7]), jnp.array(means), jnp.array(covariances))
    if name == "circle":
        return oracles.UniformRing(radius=1.0, std=0.1)
    if name == "swiss_roll":
        return oracles.swiss_roll(dtype=jnp.float64)
    raise ValueError(f"there is no target {name!r}; there are {', '.join(TARGETS)} (K modes, as ring8)")


def marginal(process: Process, t: float | Array, target: oracles.Distribution) -> tuple[Array, Array]:
    """Mean [D] and covariance [D, D] of x_t."""
    mean, covariance = target.moments()
    alpha, sigma = process.alpha(t), process.sigma(t)
    return alpha * mean, alpha**2 * covariance + sigma**2 * jnp.eye(len(mean), dtype=mean.dtype)


def starts(process: Process, n: int, seed: int = 0) -> Array:
    """n draws in the plane from the prior, [n, 2] float64."""
    return process.prior(jax.random.key(seed), (n, 2), jnp.float64)


def exact_path(
    target: oracles.Distribution, process: Process, x: Array, times: Sequence[float] | Array, rtol: float = 1e-11
) -> np.ndarray:
    """Where the probability-flow ODE takes x [n, 2] from times[0] to all `times` [k]: [k, n, 2], to about ten digits.

    By SciPy's adaptive integrator of order 8 (DOP853), which shares nothing with the solvers. A smaller `rtol` is for
    short spans: over long ones, rounding would keep the steps from ever being long.
    """
    velocity = jax.jit(lambda t, x: target.predict(process, x.reshape(-1, 2), t).velocity(process, t).ravel())
    states = [np.ravel(x)]
    for span in pairwise(map(float, times)):
        states.append(solve_ivp(velocity, span, states[-1], method="DOP853", rtol=rtol, atol=rtol / 10).y[:, -1])
    return np.stack(states).reshape(-1, *x.shape)


def exact_end(
    target: oracles.Distribution, process: Process, x: Array, start: float, end: float, rtol: float = 1e-11
) -> np.ndarray:
    """The end of `exact_path` from time `start` to `end`, [n, 2]."""
    return exact_path(target, process, x, (start, end), rtol)[-1]
