"""Schedulers in the half log-SNR l: DPM-Solver, DPM-Solver++, DEIS and UniPC, with multistep and single-step forms.

Orders grow from one at the start. Below 15 steps the last two are of lower order where the config says so
("lower_order_final"), and a last step to the data is of order 1; UniPC lowers its order at any number of steps.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from jdiff.interop.schedulers import levels
from jdiff.interop.schedulers.chain_steps import limit_of
from jdiff.interop.schedulers.levels import Fields
from jdiff.interop.schedulers.table import Correction, Level, Step, Table, tabulate


class Points:
    """Alpha, sigma and half log-SNR of n evaluations and the end; labels of the evaluations, which are whole."""

    def __init__(self, fields: Fields, n: int, tokens: int | None, *, repeats: bool, unified: bool = False):
        """`repeats`: whether the last of levels that are respaced is repeated at the end, unless that is the data.
        `unified`: UniPC's flow levels, which begin just below 1."""
        total = fields["num_train_timesteps"]
        kept = levels.alphas_cumprod(fields, least=2.0**-24)
        chain = levels.sigmas_of(kept)
        spacing, lowest = fields.get("timestep_spacing", "linspace"), fields.get("lambda_min_clipped", -math.inf)
        beyond = int(np.searchsorted(np.flip(-np.log(chain)), lowest))
        labels = levels.spaced(spacing, total, n, fields.get("steps_offset", 0), extra=1, last=total - beyond).round()
        self.flow = bool(fields.get("use_flow_sigmas"))
        sigmas, changed = np.interp(labels, np.arange(total), chain), True
        other = levels.respaced(fields, float(chain[-1]), float(chain[0]), n)
        if other is None and fields.get("use_lu_lambdas"):
            other = np.exp(np.linspace(np.log(chain)[-1], np.log(chain)[0], n))
        if other is not None:
            sigmas, labels = other, levels.to_timesteps(other, np.log(chain))
            rounds = fields.get("use_karras_sigmas") or fields.get("use_lu_lambdas")
            fractions = "use_lu_lambdas" in fields and fields["beta_schedule"] == "squaredcos_cap_v2"
            labels = labels.round() if rounds and not fractions else labels
            if self.flow:
                sigmas = sigmas / (sigmas + 1)
                labels = sigmas * total
        elif self.flow:
            sigmas = self._flow(fields, n, tokens, total, unified)
            labels = sigmas * total
        else:
            changed = False
        if fields.get("final_sigmas_type", "sigma_min") == "zero":
            last = 0.0
        else:
            last = float(sigmas[-1]) if changed and repeats else float(chain[0])
        sigmas = np.append(sigmas, last).astype(np.float32).astype(np.float64)
        self.labels, self.n = labels.astype(np.int64), len(labels)
        self.alpha = 1 - sigmas if self.flow else 1 / np.sqrt(1 + sigmas**2)
        self.sigma = sigmas if self.flow else sigmas * self.alpha
        with np.errstate(divide="ignore"):
            self.half = np.log(self.alpha) - np.log(self.sigma)

    def _flow(self, fields: Fields, n: int, tokens: int | None, total: int, unified: bool) -> np.ndarray:
        even = np.linspace(1, 1 / total, n + 1)[:-1] if unified else (1 - np.linspace(1, 1 / total, n + 1))[:0:-1]
        shift = levels.shift_of(fields, tokens) if fields.get("use_dynamic_shifting") else fields["flow_shift"]
        sigmas = levels.shifted(even, shift)
        if fields.get("shift_terminal"):
            sigmas = levels.stretched(sigmas, fields["shift_terminal"])
        if unified and abs(sigmas[0] - 1) < 1e-6:
            sigmas[0] -= 1e-6
        return sigmas

    def at(self, i: int) -> Level:
        label = float(self.labels[i]) if i < len(self.labels) else 0.0
        return Level(self.alpha[i], self.sigma[i], label)


class EDMPoints(Points):
    """Levels of EDM: x0 + sigma eps; labels are functions of sigma."""

    def __init__(self, fields: Fields, n: int, labels: Callable[[np.ndarray], np.ndarray]):
        low, high = fields["sigma_min"], fields["sigma_max"]
        if fields["sigma_schedule"] == "karras":
            sigmas = levels.karras_sigmas(high, low, n, fields["rho"])
        else:
            sigmas = np.exp(np.linspace(math.log(low), math.log(high), n))[::-1]
        last = 0.0 if fields["final_sigmas_type"] == "zero" else low
        sigmas = np.append(sigmas, last).astype(np.float32).astype(np.float64)
        self.raw, self.labels = sigmas, labels(sigmas[:-1])
        self.alpha, self.sigma = np.ones_like(sigmas), sigmas
        with np.errstate(divide="ignore"):
            self.half = -np.log(sigmas)


def _factors(points: Points, i: int, start: int, algorithm: str) -> tuple[float, float, float, float, float, float]:
    """Length of the step from `start` to i, and the factors of x, of v_0, of its slope times the length, of its
    curvature times the length squared, and of noise."""
    h = points.half[i] - points.half[start]
    alpha, sigma = points.alpha[i], points.sigma[i]
    ratio = {"x0": sigma / points.sigma[start], "eps": alpha / points.alpha[start]}
    if algorithm == "dpmsolver++":
        z, scale, x, noise = -h, -alpha, ratio["x0"], 0.0
    elif algorithm == "dpmsolver":
        z, scale, x, noise = h, -sigma, ratio["eps"], 0.0
    elif algorithm == "sde-dpmsolver++":
        z, scale, x = -2 * h, -alpha, ratio["x0"] * math.exp(-h)
        noise = sigma * math.sqrt(-math.expm1(-2 * h))
    else:
        z, scale, x, noise = h, -2 * sigma, ratio["eps"], sigma * math.sqrt(math.expm1(2 * h))
    phi = math.expm1(z)
    if not math.isfinite(h) or h == 0:
        return h, x, scale * phi, 0.0, 0.0, noise
    slope = phi / z - 1
    # The third order of "sde-dpmsolver++" is published with the other sign of 1/2.
    curvature = (phi - z) / z**2 + (0.5 if algorithm == "sde-dpmsolver++" else -0.5)
    return h, x, scale * phi, scale * slope, scale * curvature, noise


def _multistep(points: Points, i: int, order: int, fields: Fields) -> dict:
    """Factors of the multistep from point i to i + 1."""
    half = points.half
    h, x, whole, slope, curvature, noise = _factors(points, i + 1, i, fields["algorithm_type"])
    if order == 1:
        return {"x": x, "values": [whole], "noise": noise}
    r0 = (half[i] - half[i - 1]) / h if h else math.inf
    if order == 2:
        along = whole / 2 if fields["solver_type"] == "midpoint" else slope
        return {"x": x, "values": [whole + along / r0, -along / r0], "noise": noise}
    r1 = (half[i - 1] - half[i - 2]) / h if h else math.inf
    first, second = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
    if h == 0:
        return {"x": x, "values": [whole, 0.0, 0.0], "noise": noise}
    linear = first + r0 / (r0 + r1) * (first - second)
    quadratic = (first - second) / (r0 + r1)
    values = np.array([whole, 0, 0]) + slope * linear + curvature * quadratic
    return {"x": x, "values": list(values), "noise": noise}


def _orders(n: int, greatest: int, *, lowered: bool, first_at_end: bool) -> list[int]:
    """The order of each of n steps: from one up, and down at the end below 15 steps, or to the data."""
    orders = [min(i + 1, greatest) for i in range(n)]
    lowered = lowered and n < 15
    if n > 1 and lowered:
        orders[-2] = min(orders[-2], 2)
    if lowered or first_at_end:
        orders[-1] = 1
    return orders


def _space(algorithm: str) -> str:
    return "x0" if algorithm.endswith("++") else "eps"


def dpm_multistep(fields: Fields, n: int, tokens: int | None) -> Table:
    points = Points(fields, n, tokens, repeats=False)
    return _dpm(fields, points, points.n)


def _dpm(fields: Fields, points: Points, n: int, start: float = 1.0, scale: float = 1.0) -> Table:
    to_data = fields["euler_at_final"] or fields["final_sigmas_type"] == "zero"
    orders = _orders(n, fields["solver_order"], lowered=fields["lower_order_final"], first_at_end=to_data)
    steps = [
        Step(at=points.at(i), to=points.at(i + 1), **_multistep(points, i, order, fields))
        for i, order in enumerate(orders)
    ]
    if scale != 1:
        last = steps[-1]
        values = [scale * value for value in last.values]
        steps[-1] = Step(at=last.at, to=last.to, x=scale * last.x, values=values, noise=scale * last.noise)
    space = _space(fields["algorithm_type"])
    return tabulate(steps, space=space, limit=limit_of(fields), start=start)  # pyright: ignore[reportArgumentType]


def edm_multistep(fields: Fields, n: int, tokens: int | None) -> Table:
    points = _edm_points(fields, n)
    return _dpm(fields, points, n, start=math.sqrt(fields["sigma_max"] ** 2 + 1))


def edm_euler(fields: Fields, n: int, tokens: int | None) -> Table:
    points, steps = _edm_points(fields, n), []
    for i in range(n):
        sigma, end = points.raw[i : i + 2]
        at, to = points.at(i), points.at(i + 1)
        steps.append(Step(at=at, to=to, x=1.0, eps=end - sigma))
    return tabulate(steps, start=math.sqrt(fields["sigma_max"] ** 2 + 1))


def _edm_points(fields: Fields, n: int) -> EDMPoints:
    return EDMPoints(fields, n, lambda sigmas: 0.25 * np.log(sigmas))


def cosine_multistep(fields: Fields, n: int, tokens: int | None) -> Table:
    """The SDE form over EDM's levels; the label is atan(sigma) 2 / pi."""
    points = EDMPoints(fields, n, lambda sigmas: np.arctan(sigmas) * 2 / np.pi)
    scale = 1 / np.sqrt(1 + points.raw**2)  # its data has unit variance: x0 + sigma eps, made to have it, too
    points.alpha, points.sigma = scale, points.raw * scale
    fields = {**fields, "algorithm_type": "sde-dpmsolver++"}
    start = math.sqrt(fields["sigma_max"] ** 2 + 1) * scale[0]
    return _dpm(fields, points, n, start=start, scale=1 / scale[-1])


def dpm_singlestep(fields: Fields, n: int, tokens: int | None) -> Table:
    points = Points(fields, n, tokens, repeats=False)
    steps, start = [], 0
    for i, order in enumerate(_single_orders(fields, n)):
        order = min(order, i + 1)
        start = i if order == 1 else start
        factors = _singlestep(points, i, order, fields)
        state = {"x" if order == 1 else "aside": factors.pop("x")}
        steps.append(Step(at=points.at(i), to=points.at(i + 1), keep=order == 1, **state, **factors))
    space = _space(fields["algorithm_type"])
    return tabulate(steps, space=space, limit=limit_of(fields))  # pyright: ignore[reportArgumentType]


def _single_orders(fields: Fields, n: int) -> list[int]:
    order, zero = fields["solver_order"], fields["final_sigmas_type"] == "zero"
    lowered = fields["lower_order_final"] or n % order != 0 or zero
    block = list(range(1, order + 1))
    orders = block * (n // order) + block[: n % order]
    if lowered and order == 2 and n % 2 == 0:
        orders = block * (n // 2 - 1) + [1, 1]
    if lowered and order == 3 and n % 3 == 0:
        orders = block * (n // 3 - 1) + [1, 2, 1]
    if zero:
        orders[-1] = 1
    return orders


def _singlestep(points: Points, i: int, order: int, fields: Fields) -> dict:
    """Factors from the start of the block of `order` evaluations that ends with i, to i + 1."""
    start, half = i - order + 1, points.half
    h, x, whole, slope, curvature, noise = _factors(points, i + 1, start, fields["algorithm_type"])
    if order == 1:
        return {"x": x, "values": [whole], "noise": noise}
    r0 = (half[i] - half[start]) / h
    if order == 2:
        along = whole / 2 if fields["solver_type"] == "midpoint" else slope
        return {"x": x, "values": [along / r0, whole - along / r0], "noise": noise}
    r1 = (half[i - 1] - half[start]) / h
    late, early = np.array([1, 0, -1]) / r0, np.array([0, 1, -1]) / r1
    values = np.array([0, 0, whole])
    if fields["solver_type"] == "midpoint":
        values = values + slope * late
    else:
        linear, quadratic = (r0 * early - r1 * late) / (r0 - r1), 2 * (late - early) / (r0 - r1)
        values = values + slope * linear + curvature * quadratic
    return {"x": x, "values": list(values), "noise": noise}


def deis(fields: Fields, n: int, tokens: int | None) -> Table:
    """eps is a polynomial in log(sigma / alpha); integrals are exact (arXiv:2204.13902)."""
    points = Points(fields, n, tokens, repeats=True)
    rho = points.sigma / points.alpha
    orders = _orders(n, fields["solver_order"], lowered=fields["lower_order_final"], first_at_end=False)
    steps = []
    for i, order in enumerate(orders):
        nodes = np.log(rho[i::-1][:order])
        values = [points.alpha[i + 1] * _integral(nodes, j, rho[i], rho[i + 1]) for j in range(order)]
        x = points.alpha[i + 1] / points.alpha[i]
        steps.append(Step(at=points.at(i), to=points.at(i + 1), x=x, values=values))
    return tabulate(steps, space="eps", limit=limit_of(fields))


def _integral(nodes: np.ndarray, j: int, start: float, end: float) -> float:
    """Over rho, of the Lagrange polynomial in log rho that is one at node j: of degree at most 2."""
    others = np.delete(nodes, j)

    def primitive(rho: float) -> float:
        at = math.log(rho)
        if len(others) == 0:
            return rho
        if len(others) == 1:
            return rho * (at - others[0] - 1)
        return rho * ((at - others[0]) * (at - others[1]) - (2 * at - others.sum()) + 2)

    return (primitive(end) - primitive(start)) / float(np.prod(nodes[j] - others))


def unipc(fields: Fields, n: int, tokens: int | None) -> Table:
    """A predictor of order p, corrected by the next evaluation to p + 1 (arXiv:2302.04867)."""
    points, steps, before = Points(fields, n, tokens, repeats=True, unified=True), [], 0
    for i in range(n):
        order = min(fields["solver_order"], n - i) if fields["lower_order_final"] else fields["solver_order"]
        order = min(order, i + 1)
        correction = Correction()
        if i > 0 and i - 1 not in fields["disable_corrector"]:
            x, values = _unified(points, i, i - 1, before, fields, corrects=True)
            correction = Correction(x=0.0, aside=x, values=values)
        x, values = _unified(points, i + 1, i, order, fields, corrects=False)
        before = order
        steps.append(Step(at=points.at(i), to=points.at(i + 1), x=x, values=values, correction=correction, keep=True))
    return tabulate(steps, space="x0" if fields["predict_x0"] else "eps", limit=limit_of(fields))


def _unified(
    points: Points, to: int, start: int, order: int, fields: Fields, *, corrects: bool
) -> tuple[float, Sequence[float]]:
    """Factors of the state at `start` and of the values, newest first: from that at `to` for a corrector."""
    half, data = points.half, fields["predict_x0"]
    h = half[to] - half[start]
    z = -h if data else h
    scale = points.alpha[to] if data else points.sigma[to]
    x = points.sigma[to] / points.sigma[start] if data else points.alpha[to] / points.alpha[start]
    phi = math.expm1(z)
    ratios = np.array([(half[start - k] - half[start]) / h for k in range(1, order)] + [1.0])
    weights = np.array([0.5])
    spread = z if fields["solver_type"] == "bh1" else phi
    if order > 1:
        if math.isinf(h):
            raise ValueError("UniPC steps to the data by order 1 alone: lower_order_final must be true")
        term, factorial, right = phi / z - 1, 1, []
        for k in range(1, order + 1):
            right.append(term * factorial / spread)
            factorial *= k + 1
            term = term / z - 1 / factorial
        matrix = np.stack([ratios**k for k in range(order)])
        unknown = order if corrects else order - 1
        known = unknown == 1 and (order == 2 or corrects)
        weights = np.array([0.5]) if known else np.linalg.solve(matrix[:unknown, :unknown], right[:unknown])
    differences = np.zeros(order + 1)  # of the value at `to`, at `start`, and before
    differences[1] = -scale * phi
    for k in range(1, order):
        factor = -scale * spread * weights[k - 1] / ratios[k - 1]
        differences[k + 1] += factor
        differences[1] -= factor
    if corrects:
        factor = -scale * spread * weights[-1]
        differences[0] += factor
        differences[1] -= factor
        return x, list(differences)
    return x, list(differences[1:])
