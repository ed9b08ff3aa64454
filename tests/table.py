"""The tables that drive the maths: what is added to `jdiff` must be added here, and is tested everywhere at once."""

import jax.numpy as jnp

from jdiff import oracles
from jdiff.prediction import X0, EDMPreconditioning, Eps, LearnedVariance, Parameterization, Score, V, Velocity
from jdiff.processes import EDM, VE, VP, Process, RectifiedFlow

PROCESSES: dict[str, Process] = {"vp": VP(), "ve": VE(), "edm": EDM(), "flow": RectifiedFlow()}
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
TIMES = {"vp": (0.05, 0.3, 0.9), "ve": (0.05, 1.0, 20.0), "edm": (0.05, 1.0, 20.0), "flow": (0.05, 0.4, 0.9)}


def anisotropic(dtype=jnp.float64) -> oracles.Mixture:
    """A tilted Gaussian off the origin."""
    return oracles.gaussian(jnp.array([0.3, -0.2], dtype), jnp.array([[0.7, 0.3], [0.3, 0.4]], dtype))


def two_modes(dtype=jnp.float64) -> oracles.Mixture:
    """Two unequal modes with different covariances."""
    means = jnp.array([[-0.8, 0.0], [0.7, 0.4]], dtype)
    covariances = jnp.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]], dtype)
    return oracles.mixture(jnp.array([0.3, 0.7], dtype), means, covariances)


TARGETS = {"gaussian": anisotropic, "mixture": two_modes}
