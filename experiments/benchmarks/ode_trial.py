"""What solvers are compared on: targets, starts, and where the probability-flow ODE takes them, in small steps."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import oracles, rng
from jdiff.oracles import Distribution, Mixture, UniformRing
from jdiff.prediction import Prediction
from jdiff.processes import EDM
from jdiff.samplers import Solver, integrate
from jdiff.typing import Array, Denoiser, Time

PROCESS = EDM(sigma_min=0.002, sigma_max=80.0)
STARTS = 2048


def random_mixture(seed: int, modes: int, spread: float, std: float) -> Mixture:
    """Modes of unequal weight and any covariance, spread about the origin."""
    key, other = jax.random.split(jax.random.key(seed))
    means = spread * jax.random.normal(key, (modes, 2), jnp.float64)
    root = std * jax.random.normal(other, (modes, 2, 2), jnp.float64)
    covariances = root @ root.transpose(0, 2, 1) + std**2 * jnp.eye(2)
    return oracles.mixture(jnp.arange(1, modes + 1) / modes, means, covariances)


def ring(modes: int, std: float = 0.1) -> Mixture:
    """Modes on the unit circle."""
    return oracles.ring(modes, 1.0, std, jnp.float64)


def evaluated_on() -> dict[str, Distribution]:
    """What errors are measured on; the first is the one that grids may be searched on."""
    return {
        "ring of 8": ring(8),
        "ring of 5": ring(5),
        "uniform ring": UniformRing(radius=1.0, std=0.1),
        "broad mixture": random_mixture(seed=7, modes=4, spread=1.0, std=0.3),
    }


def together(targets: Sequence[Distribution]) -> Denoiser:
    """One denoiser for a batch that has as many rows of each target."""

    def denoise(x: Array, t: Time) -> Prediction:
        rows = split(x, len(targets))
        parts = [target.predict(PROCESS, part, t) for target, part in zip(targets, rows, strict=True)]
        return jax.tree.map(lambda *part: jnp.concatenate(part), *parts)

    return denoise


def split(x: Array, targets: int) -> Array:
    """Rows [T B, 2] by target: [T, B, 2]."""
    return x.reshape(targets, -1, 2)


def starts(seed: int, n: int) -> tuple[Array, Array]:
    """Keys [n] and states [n, 2] at sigma = 80."""
    keys = rng.per_example(jax.random.key(seed), jnp.arange(n))
    return keys, jax.vmap(lambda key: PROCESS.prior(key, (2,), jnp.float64))(keys)


def fine(denoise: Denoiser, x: Array, steps: int = 4000) -> Array:
    """Where the ODE takes x, by RK4 in u = log sigma, where it is dx/du = x - x0."""
    t_min, t_max = PROCESS.time_span
    h = np.log(t_min / t_max) / steps
    slope = lambda x, u: x - denoise(x, jnp.exp(u)).x0

    def step(x: Array, number: Array) -> tuple[Array, None]:
        u = np.log(t_max) + number * h
        first = slope(x, u)
        second = slope(x + h / 2 * first, u + h / 2)
        third = slope(x + h / 2 * second, u + h / 2)
        last = slope(x + h * third, u + h)
        return x + h / 6 * (first + 2 * second + 2 * third + last), None

    return jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(steps))[0])(x)


class Trial:
    """The starts, the same for every target, and errors by target of what a method makes of them."""

    def __init__(self):
        self.targets = evaluated_on()
        keys, x = starts(0, STARTS)
        self.keys, self.x = (jnp.concatenate([part] * len(self.targets)) for part in (keys, x))
        self.denoise = together(list(self.targets.values()))
        self.exact = fine(self.denoise, self.x)

    def errors(self, end: Array) -> dict[str, float]:
        """Root mean square by target, of ends [T B, 2]."""
        square = np.square(np.asarray(split(end - self.exact, len(self.targets)))).mean(axis=(1, 2))
        return dict(zip(self.targets, np.sqrt(square).tolist(), strict=True))

    def run(self, solver: Solver, grids: Array) -> list[dict[str, float]]:
        """Errors over each of the grids [g, n]."""
        one = lambda grid: integrate(self.keys, self.x, self.denoise, PROCESS, solver, grid)
        return [self.errors(end) for end in jax.jit(lambda grids: jax.lax.map(one, grids))(grids)]
