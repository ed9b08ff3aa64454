"""Parameters for tests: away from initialization, where zero layers hide everything, and drawn without compiling."""

import jax
import numpy as np

from jdiff.models import Network


def drawn(network: Network, scale: float = 0.2, seed: int = 0):
    """Parameters with the structure that `network.init` gives, every entry normal with standard deviation `scale`."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.numpy.asarray(rng.normal(0.0, scale, leaf.shape), leaf.dtype), shapes)
