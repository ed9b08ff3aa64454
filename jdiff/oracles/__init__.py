"""Distributions whose predictions, scores, velocities and densities are known exactly under every process and time.

`Distribution` is what they share: `base.py`. Score and velocity come from the `Prediction`. The values are
`Mixture` (`mixture`, `gaussian`, `ring`), `Points` (`points`, `swiss_roll`) and `UniformRing`; `Classes` is a mixture
with class labels; `conditioned` and `product` make the mixtures that inpainting and composition should reach.
"""

from jdiff.oracles.base import Distribution
from jdiff.oracles.circle import UniformRing
from jdiff.oracles.classes import Classes, classes
from jdiff.oracles.mixture import Mixture, gaussian, gaussian_flow, mixture, ring
from jdiff.oracles.points import Points, points, swiss_roll
from jdiff.oracles.posteriors import conditioned, product

__all__ = [
    "Classes",
    "Distribution",
    "Mixture",
    "Points",
    "UniformRing",
    "classes",
    "conditioned",
    "gaussian",
    "gaussian_flow",
    "mixture",
    "points",
    "product",
    "ring",
    "swiss_roll",
]
