"""SA-Solver: stochastic Adams methods in the half log-SNR, predictor and corrector (arXiv:2309.05019).

tau is 1 at timesteps from 200 to 800 and 0 elsewhere; the corrector has that of the evaluation before. Two values get
an additional term of higher order, which the paper's algorithm has not.
"""

import math

import numpy as np

from jdiff.interop.schedulers.chain_steps import limit_of
from jdiff.interop.schedulers.exponential_steps import Points
from jdiff.interop.schedulers.levels import Fields
from jdiff.interop.schedulers.table import Correction, Step, Table, tabulate


def sa_solver(fields: Fields, n: int, tokens: int | None) -> Table:
    points, steps = Points(fields, n, tokens, repeats=True), []
    n = points.n
    data = fields["algorithm_type"] == "data_prediction"
    tau = lambda i: float(200 <= points.labels[i] <= 800)
    greatest = max(fields["predictor_order"], fields["corrector_order"] - 1)
    corrector = 0
    for i in range(n):
        grown = min(i, greatest)
        correction = Correction()
        if i > 0:
            x, values, noise = _factors(points, i, i - 1, i, corrector, tau(i - 1), data, corrects=True)
            correction = Correction(x=0.0, aside=x, noise=noise, values=values)
        left = n - i if fields["lower_order_final"] else n + greatest
        predictor = min(fields["predictor_order"], left, grown + 1)
        corrector = min(fields["corrector_order"], left + 1, grown + 2)
        x, values, noise = _factors(points, i + 1, i, i, predictor, tau(i), data, corrects=False)
        steps.append(
            Step(
                at=points.at(i),
                to=points.at(i + 1),
                x=x,
                values=values,
                noise=noise,
                correction=correction,
                keep=True,
            )
        )
    return tabulate(steps, space="x0" if data else "eps", limit=limit_of(fields))


def _factors(
    points: Points, to: int, start: int, newest: int, order: int, tau: float, data: bool, *, corrects: bool
) -> tuple[float, list[float], float]:
    """Factors of the state at `start`, of the values from `newest` back, and of the noise."""
    half = points.half
    h, power = half[to] - half[start], 1 + tau**2
    node, weight = np.polynomial.legendre.leggauss(16)
    at = (half[to] + half[start]) / 2 + h / 2 * node
    grows = np.exp(power * (at - half[to])) if data else np.exp(half[to] - at)
    nodes = half[newest::-1][:order]
    values = []
    for j, here in enumerate(nodes):
        others = np.delete(nodes, j)
        polynomial = np.prod([(at - other) / (here - other) for other in others], axis=0) * np.ones_like(at)
        values.append(float((weight * grows * polynomial).sum() * h / 2))
    if data and order == 2:
        rest = (h * power - 1 + math.exp(-power * h)) / power**2
        added = (h / 2 - rest / h if h else 0.0) if corrects else (h**2 / 2 - rest) / (nodes[0] - nodes[1])
        values = [values[0] + added, values[1] - added]
    if data:
        values = [power * points.alpha[to] * value for value in values]
        x = math.exp(-(tau**2) * h) * points.sigma[to] / points.sigma[start]
        return x, values, points.sigma[to] * math.sqrt(-math.expm1(-2 * tau**2 * h))
    values = [-power * points.sigma[to] * value for value in values]
    noise = tau * points.sigma[to] * math.sqrt(math.expm1(2 * h))
    return points.alpha[to] / points.alpha[start], values, noise
