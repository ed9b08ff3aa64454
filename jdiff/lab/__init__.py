"""Measured errors and orders of solvers, on targets whose answers are known: problems, measures, pictures."""

from jdiff.lab.certificate import certificate, even_grid
from jdiff.lab.defects import multistep_weak_error, multistep_weak_errors
from jdiff.lab.draw import draw_errors
from jdiff.lab.measure import (
    Order,
    end_errors,
    errors_on_the_way,
    gaussian_moments,
    keys_of,
    measured_order,
    moment_error,
    path_errors,
    sampled_moment_error,
    steps_for,
    through,
)
from jdiff.lab.problems import PROCESSES, TARGETS, exact_end, exact_path, lookup, marginal, starts, target
from jdiff.lab.weak import memoryless, weak_error, weak_errors

__all__ = ["PROCESSES", "TARGETS", "Order", "certificate", "draw_errors", "end_errors", "even_grid", "exact_end"]
__all__ += ["errors_on_the_way", "exact_path"]
__all__ += ["gaussian_moments", "keys_of", "lookup", "marginal", "measured_order", "moment_error"]
__all__ += ["path_errors", "sampled_moment_error", "starts", "steps_for", "target", "through"]
__all__ += ["memoryless", "multistep_weak_error", "multistep_weak_errors", "weak_error", "weak_errors"]
