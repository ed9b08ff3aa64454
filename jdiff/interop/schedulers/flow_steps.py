"""Schedulers of rectified flows, in (1 - sigma) x0 + sigma eps: Euler and Heun, shifted by a constant or by the size.

A constant shift is applied twice to the ends of the schedule, as published: once when it is made, and when the
timesteps are set.
"""

import itertools

import numpy as np

from jdiff.interop.schedulers import levels
from jdiff.interop.schedulers.levels import Fields
from jdiff.interop.schedulers.table import Level, Step, Table, tabulate


def _levels(fields: Fields, n: int, tokens: int | None) -> tuple[np.ndarray, list[Level]]:
    if n < 1:
        raise ValueError(f"steps must be at least 1, got {n}")
    total, dynamic = fields["num_train_timesteps"], fields.get("use_dynamic_shifting")
    least = 1 / total if dynamic else levels.shifted(np.array(1 / total), fields["shift"])
    shift = levels.shift_of(fields, tokens) if dynamic else fields["shift"]
    sigmas = levels.shifted(np.linspace(1.0, float(least), n), shift)
    if fields.get("shift_terminal"):
        sigmas = levels.stretched(sigmas, fields["shift_terminal"])
    other = levels.respaced(fields, float(sigmas[0]), float(sigmas[-1]), n)
    sigmas = np.append(sigmas if other is None else other, 0.0).astype(np.float32).astype(np.float64)
    return sigmas, [Level(1 - sigma, sigma, sigma * total) for sigma in sigmas]


def flow_euler(fields: Fields, n: int, tokens: int | None) -> Table:
    _, points = _levels(fields, n, tokens)
    steps = []
    for at, to in itertools.pairwise(points):
        drawn = bool(fields["stochastic_sampling"])
        noise, eps = to.sigma * drawn, to.sigma * (not drawn)
        steps.append(Step(at=at, to=to, values=[to.alpha], noise=noise, eps=eps))
    return tabulate(steps)


def flow_heun(fields: Fields, n: int, tokens: int | None) -> Table:
    """Trapezoidal steps in the velocity eps - x0, and one of Euler's to the data."""
    sigmas, points = _levels(fields, n, tokens)
    steps = []
    for i, (at, to) in enumerate(itertools.pairwise(points)):
        h = sigmas[i + 1] - sigmas[i]
        # The velocity is (x - x0) / sigma: the value that is kept is x0, and x is put aside.
        steps.append(Step(at=at, to=to, x=1 + h / at.sigma, values=[-h / at.sigma], keep=True))
        if i < n - 1:
            steps.append(
                Step(
                    at=to,
                    to=to,
                    x=h / 2 / to.sigma,
                    aside=1 + h / 2 / at.sigma,
                    values=[-h / 2 / to.sigma, -h / 2 / at.sigma],
                )
            )
    return tabulate(steps)
