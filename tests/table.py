"""The tables that drive the maths: what is added to `jdiff` must be added here, and is tested everywhere at once."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jdiff import oracles
from jdiff.prediction import X0, EDMPreconditioning, Eps, LearnedVariance, Parameterization, Score, V, Velocity
from jdiff.processes import (
    EDM,
    VE,
    VP,
    Chain,
    Cosine,
    LearnedGamma,
    Process,
    RectifiedFlow,
    Shifted,
    SubVP,
    ZeroTerminalSNR,
    flow_shift,
    linear_betas,
    linear_gamma,
)


def bent() -> LearnedGamma:
    """A learned schedule that is far from linear."""
    k = np.arange(8)
    return dataclasses.replace(
        linear_gamma(units=8),
        log_weights=jnp.asarray(2 * np.sin(3 * k) - 1, jnp.float32),
        log_steepness=jnp.asarray(2.5 + np.cos(5 * k), jnp.float32),
    )


PROCESSES: dict[str, Process] = {
    "vp": VP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": RectifiedFlow(),
    "subvp": SubVP(),
    "cosine": Cosine(),
    "shifted": Shifted(process=Cosine(), log_snr_shift=-1.4),
    "shifted_flow": flow_shift(3.0),
    "zero_snr": ZeroTerminalSNR(process=VP()),
    "learned": bent(),
    "chain": Chain.from_betas(linear_betas(50, 2e-3, 0.4)),
}
PARAMETERIZATIONS: dict[str, Parameterization] = {
    "eps": Eps(),
    "x0": X0(),
    "v": V(),
    "score": Score(),
    "velocity": Velocity(),
    "edm": EDMPreconditioning(sigma_data=0.7),
}
# These predict the mean by another one of the table, so that what rests on the mean alone needs no second look.
LEARNED_VARIANCE: dict[str, Parameterization] = {
    "learned_eps": LearnedVariance(mean=Eps()),
    "learned_edm": LearnedVariance(mean=EDMPreconditioning(sigma_data=0.7)),
}
NEED_SIGNAL = {"eps", "score", "edm", "learned_eps", "learned_edm"}  # refused with a process whose terminal SNR is zero
# Times well inside each process, from clean to noisy.
TIMES = dict.fromkeys(PROCESSES, (0.05, 0.4, 0.9)) | {
    "vp": (0.05, 0.3, 0.9),
    "ve": (0.05, 1.0, 20.0),
    "edm": (0.05, 1.0, 20.0),
    "chain": (0.053, 0.304, 0.897),  # between its steps: at one, the slopes have two sides
}


def anisotropic(dtype=jnp.float64) -> oracles.Mixture:
    """A tilted Gaussian off the origin."""
    return oracles.gaussian(jnp.array([0.3, -0.2], dtype), jnp.array([[0.7, 0.3], [0.3, 0.4]], dtype))


def two_modes(dtype=jnp.float64) -> oracles.Mixture:
    """Two unequal modes with different covariances."""
    means = jnp.array([[-0.8, 0.0], [0.7, 0.4]], dtype)
    covariances = jnp.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]], dtype)
    return oracles.mixture(jnp.array([0.3, 0.7], dtype), means, covariances)


TARGETS = {"gaussian": anisotropic, "mixture": two_modes}
