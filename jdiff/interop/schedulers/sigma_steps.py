"""Schedulers in x0 + sigma eps, from k-diffusion: Euler, Euler ancestral, Heun, DPM2, LMS.

Their derivative (x - x0) / sigma is the predicted noise. `leading` spacing starts from noise of standard deviation
sqrt(sigma^2 + 1), the others from sigma. What they return is not scaled back at the end, which shows where that is not
the data.
"""

import math
from collections.abc import Sequence

import numpy as np

from jdiff.interop.schedulers import levels
from jdiff.interop.schedulers.chain_steps import limit_of
from jdiff.interop.schedulers.levels import Fields
from jdiff.interop.schedulers.table import Level, Step, Table, tabulate


class Sigmas:
    """Levels and labels of n evaluations, and the last level."""

    def __init__(self, fields: Fields, n: int, *, whole: bool = False):
        chain = levels.sigmas_of(levels.alphas_cumprod(fields, least=2.0**-24))
        logs = np.log(chain)
        self.timesteps_of = lambda sigmas: levels.to_timesteps(np.asarray(sigmas), logs)
        spacing = fields["timestep_spacing"]
        labels = levels.spaced(spacing, fields["num_train_timesteps"], n, fields["steps_offset"]).astype(np.float32)
        sigmas = np.interp(labels, np.arange(len(chain)), chain)
        last = float(chain[0]) if fields.get("final_sigmas_type") == "sigma_min" else 0.0
        if fields.get("interpolation_type") == "log_linear":
            sigmas = np.exp(np.linspace(logs[-1], logs[0], n + 1))
        other = levels.respaced(fields, float(sigmas[0]), float(sigmas[-1]), n)
        if other is not None:
            sigmas, labels = other, self.timesteps_of(other)
            labels = labels.round() if whole and fields.get("use_karras_sigmas") else labels
        # "log_linear" has a level of its own for the end, or one more evaluation.
        sigmas = np.append(sigmas, last).astype(np.float32).astype(np.float64)
        if fields.get("timestep_type") == "continuous" and fields["prediction_type"] == "v_prediction":
            labels = 0.25 * np.log(sigmas[:-1])
        self.n = len(labels)
        self.sigmas, self.labels = sigmas[: self.n + 1], labels
        greatest = float(sigmas.max())
        self.start = greatest / math.sqrt(1 + greatest**2) if spacing != "leading" else 1.0


def level(sigma: float, label: float = 0.0) -> Level:
    scale = 1 / math.sqrt(1 + sigma**2)
    return Level(scale, sigma * scale, label)


def move(
    at: Level,
    to: Level,
    derivative: float,
    *,
    last: bool,
    aside: float | None = None,
    noise: float = 0.0,
    values: Sequence[float] = (),
    keep: bool = False,
) -> Step:
    """x + derivative * eps in their scale, from the level of the state: `at`, or that of alpha `aside` put aside."""
    scale = 1.0 if last else to.alpha
    x, other = (scale / at.alpha, 0.0) if aside is None else (0.0, scale / aside)
    values = [scale * value for value in values] or [scale * derivative]
    return Step(at=at, to=to, noise=scale * noise, values=values, keep=keep, x=x, aside=other)


def euler(fields: Fields, n: int, tokens: int | None) -> Table:
    plan, steps = Sigmas(fields, n), []
    for i in range(plan.n):
        sigma, end = plan.sigmas[i : i + 2]
        steps.append(move(level(sigma, plan.labels[i]), level(end), end - sigma, last=i == plan.n - 1))
    return tabulate(steps, space="eps", start=plan.start)


def _ancestral(sigma: float, end: float) -> tuple[float, float]:
    """The noise that is added, and the level before it: their difference, in the float32 that it is published in."""
    squared, there = np.float32(sigma) ** 2, np.float32(end) ** 2
    up = np.sqrt(there * (squared - there) / squared)
    return float(up), float(np.sqrt(np.maximum(there - up**2, 0)))


def euler_ancestral(fields: Fields, n: int, tokens: int | None) -> Table:
    plan, steps = Sigmas(fields, n), []
    for i in range(n):
        sigma, end = plan.sigmas[i : i + 2]
        up, down = _ancestral(sigma, end)
        steps.append(move(level(sigma, plan.labels[i]), level(end), down - sigma, last=i == n - 1, noise=up))
    return tabulate(steps, space="eps", start=plan.start)


def lms(fields: Fields, n: int, tokens: int | None) -> Table:
    """Adams and Bashforth in sigma, of order 4."""
    plan, steps = Sigmas(fields, n), []
    points, weights = np.polynomial.legendre.leggauss(4)
    for i in range(n):
        sigma, end = plan.sigmas[i : i + 2]
        nodes = plan.sigmas[i::-1][:4]
        at = (sigma + end) / 2 + (end - sigma) / 2 * points
        values = []
        for j, node in enumerate(nodes):
            others = np.delete(nodes, j)
            polynomial = np.prod([(at - other) / (node - other) for other in others], axis=0) * np.ones_like(at)
            values.append(float((weights * polynomial).sum() * (end - sigma) / 2))
        steps.append(move(level(sigma, plan.labels[i]), level(end), 0.0, last=i == n - 1, values=values))
    return tabulate(steps, space="eps", start=plan.start)


def heun(fields: Fields, n: int, tokens: int | None) -> Table:
    plan = Sigmas(fields, n)
    points = [level(sigma, label) for sigma, label in zip(plan.sigmas, [*plan.labels, 0.0], strict=True)]
    return tabulate(heun_steps(plan.sigmas, points), space="eps", start=plan.start, limit=limit_of(fields))


def heun_steps(sigmas: np.ndarray, points: Sequence[Level]) -> list[Step]:
    """Trapezoidal steps, and one of Euler's to the last level."""
    steps, n = [], len(points) - 1
    for i in range(n):
        h = float(sigmas[i + 1] - sigmas[i])
        at, to, last = points[i], points[i + 1], i == n - 1
        steps.append(move(at, to, h, last=last, keep=True))
        if not last:
            steps.append(move(to, to, 0.0, last=False, aside=at.alpha, values=[h / 2, h / 2]))
    return steps


def dpm2(fields: Fields, n: int, tokens: int | None) -> Table:
    return _dpm2(fields, n, ancestral=False)


def dpm2_ancestral(fields: Fields, n: int, tokens: int | None) -> Table:
    return _dpm2(fields, n, ancestral=True)


def _dpm2(fields: Fields, n: int, *, ancestral: bool) -> Table:
    """The slope at the middle of a step in log sigma; the last step is Euler's."""
    plan, steps = Sigmas(fields, n, whole=True), []
    for i in range(n):
        sigma, end = plan.sigmas[i : i + 2]
        at = level(sigma, plan.labels[i])
        if i == n - 1:
            steps.append(move(at, level(end), end - sigma, last=True))
            break
        up, down = _ancestral(sigma, end) if ancestral else (0.0, end)
        inner = math.sqrt(sigma * down)
        middle, to = level(inner, float(plan.timesteps_of(inner))), level(end)
        steps.append(move(at, middle, inner - sigma, last=False, keep=True))
        steps.append(move(middle, to, down - sigma, last=False, aside=at.alpha, noise=up))
    return tabulate(steps, space="eps", start=plan.start)
