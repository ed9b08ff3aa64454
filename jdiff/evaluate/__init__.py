"""How good a trained network is: losses on held-out images, and distances between sets of images."""

from jdiff.evaluate.distances import frechet, mmd
from jdiff.evaluate.features import NAME, features
from jdiff.evaluate.held_out import loss_by_level
from jdiff.evaluate.report import Distances, draw_losses, measure

__all__ = ["NAME", "Distances", "draw_losses", "features", "frechet", "loss_by_level", "measure", "mmd"]
