"""Deterministic methods in plain numpy, in the form in which papers and packages published them.

States, slopes and linear systems, which ours have not; over one grid, from one start, with one network.
"""

import itertools
from collections.abc import Callable

import numpy as np
from scipy.integrate import quad

from jdiff.processes import VP

PROCESS = VP()
GRID = np.array([0.95, 0.83, 0.7, 0.62, 0.45, 0.36, 0.22, 0.13, 0.06])
START = np.array([[0.3, -1.1], [0.8, 0.2], [-1.4, 0.5]])


def data(xp, x, t):
    """A network that is linear in nothing."""
    return xp.tanh(x @ xp.asarray([[1.0, 0.4], [-0.3, 0.8]]) + 0.3) * (1 + t**2)


def alpha(t):
    return float(PROCESS.alpha(t))


def sigma(t):
    return float(PROCESS.sigma(t))


def lam(t):
    return np.log(alpha(t) / sigma(t))


def rho(t):
    return sigma(t) / alpha(t)


def t_of(value):
    return float(PROCESS.time(2 * value))


def x0(x, t):
    return data(np, x, t)


def eps(x, t):
    return (x - alpha(t) * x0(x, t)) / sigma(t)


def ddim(x, e, t, s):
    """PNDM's transfer, eq. 11: the step with a given noise."""
    return alpha(s) / alpha(t) * x + (sigma(s) - alpha(s) / alpha(t) * sigma(t)) * e


def steps_of(step, x=START):
    for t, s in itertools.pairwise(GRID):
        x = step(x, t, s)
    return x


def dpm_solver_2(x, t, s):
    h = lam(s) - lam(t)
    middle = t_of((lam(t) + lam(s)) / 2)
    first = eps(x, t)
    u = alpha(middle) / alpha(t) * x - sigma(middle) * np.expm1(h / 2) * first
    return alpha(s) / alpha(t) * x - sigma(s) * np.expm1(h) * eps(u, middle)


def dpm_solver_3(x, t, s):
    h, r1, r2 = lam(s) - lam(t), 1 / 3, 2 / 3
    t1, t2 = t_of(lam(t) + r1 * h), t_of(lam(t) + r2 * h)
    first = eps(x, t)
    u1 = alpha(t1) / alpha(t) * x - sigma(t1) * np.expm1(r1 * h) * first
    d1 = eps(u1, t1) - first
    u2 = alpha(t2) / alpha(t) * x - sigma(t2) * np.expm1(r2 * h) * first
    u2 -= sigma(t2) * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = eps(u2, t2) - first
    return alpha(s) / alpha(t) * x - sigma(s) * np.expm1(h) * first - sigma(s) / r2 * (np.expm1(h) / h - 1) * d2


def dpmpp_2s(x, t, s):
    h = lam(s) - lam(t)
    middle = t_of(lam(t) + h / 2)
    u = sigma(middle) / sigma(t) * x - alpha(middle) * np.expm1(-h / 2) * x0(x, t)
    return sigma(s) / sigma(t) * x - alpha(s) * np.expm1(-h) * x0(u, middle)


def dpmpp_3s(x, t, s):
    h, r1, r2 = lam(s) - lam(t), 1 / 3, 2 / 3
    t1, t2 = t_of(lam(t) + r1 * h), t_of(lam(t) + r2 * h)
    first = x0(x, t)
    u1 = sigma(t1) / sigma(t) * x - alpha(t1) * np.expm1(-r1 * h) * first
    d1 = x0(u1, t1) - first
    u2 = sigma(t2) / sigma(t) * x - alpha(t2) * np.expm1(-r2 * h) * first
    u2 += alpha(t2) * r2 / r1 * (np.expm1(-r2 * h) / (r2 * h) + 1) * d1
    d2 = x0(u2, t2) - first
    return sigma(s) / sigma(t) * x - alpha(s) * np.expm1(-h) * first + alpha(s) / r2 * (np.expm1(-h) / h + 1) * d2


def dpm_2(x, t, s):
    """In y = x / alpha, over the noise level rho."""
    middle = t_of(-(np.log(rho(t)) + np.log(rho(s))) / 2)
    slope = lambda y, time: (y - x0(alpha(time) * y, time)) / rho(time)
    y = x / alpha(t)
    inner = y + slope(y, t) * (rho(middle) - rho(t))
    return alpha(s) * (y + slope(inner, middle) * (rho(s) - rho(t)))


def phi1(z):
    return np.expm1(z) / z


def phi2(z):
    return (phi1(z) - 1) / z


def res(nodes):
    """Exponential Runge-Kutta over dx/dl = -x + x0 (for x / alpha), in the paper's a and b."""

    def step(x, t, s):
        h = lam(s) - lam(t)
        times = [t, *(t_of(lam(t) + c * h) for c in nodes)]
        if len(nodes) == 1:
            rows = [[nodes[0] * phi1(-nodes[0] * h)], [phi1(-h) - phi2(-h) / nodes[0], phi2(-h) / nodes[0]]]
        else:
            c2, c3 = nodes
            gamma = (3 * c3**3 - 2 * c3) / (c2 * (2 - 3 * c2))
            a32 = gamma * c2 * phi2(-c2 * h) + c3**2 / c2 * phi2(-c3 * h)
            b2, b3 = (share / (gamma * c2 + c3) * phi2(-h) for share in (gamma, 1))
            rows = [[c2 * phi1(-c2 * h)], [c3 * phi1(-c3 * h) - a32, a32], [phi1(-h) - b2 - b3, b2, b3]]
        values = [x0(x, t)]
        for row, c, time in zip(rows, [*nodes, 1], [*times[1:], s], strict=True):
            state = np.exp(-c * h) * x * alpha(time) / alpha(t)
            state = state + alpha(time) * h * sum(w * v for w, v in zip(row, values, strict=True))
            values.append(x0(state, time))
        return state

    return lambda: steps_of(step)


def with_history(step):
    """A loop over the grid's steps that hands over (x, i, values so far, the newest last)."""

    def run(value):
        x, values = START, []
        for i in range(len(GRID) - 1):
            values.append(value(x, GRID[i]))
            x = step(x, i, values)
        return x

    return run


def published_3m(x, i, m):
    """DPM-Solver++'s multistep updates of first, second and third order."""
    t, s = GRID[i], GRID[i + 1]
    h = lam(s) - lam(t)
    x = sigma(s) / sigma(t) * x - alpha(s) * np.expm1(-h) * m[-1]
    if i == 0:
        return x
    r0 = (lam(t) - lam(GRID[i - 1])) / h
    d10 = (m[-1] - m[-2]) / r0
    if i == 1:
        return x - alpha(s) / 2 * np.expm1(-h) * d10
    r1 = (lam(GRID[i - 1]) - lam(GRID[i - 2])) / h
    d11 = (m[-2] - m[-3]) / r1
    d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
    d2 = (d10 - d11) / (r0 + r1)
    return x + alpha(s) * (np.expm1(-h) / h + 1) * d1 - alpha(s) * ((np.exp(-h) - 1 + h) / h**2 - 0.5) * d2


def dpm_solver_2m(x, i, m):
    t, s = GRID[i], GRID[i + 1]
    h = lam(s) - lam(t)
    slope = (m[-1] - m[-2]) * h / (lam(t) - lam(GRID[i - 1])) if i else 0
    return alpha(s) / alpha(t) * x - sigma(s) * np.expm1(h) * (m[-1] + slope / 2)


def dpmpp_2m(x, i, m):
    t, s = GRID[i], GRID[i + 1]
    h = lam(s) - lam(t)
    slope = (m[-1] - m[-2]) * h / (lam(t) - lam(GRID[i - 1])) if i else 0
    return sigma(s) / sigma(t) * x - alpha(s) * np.expm1(-h) * (m[-1] + slope / 2)


def cardinal(nodes, j):
    """The Lagrange polynomial that is one at node j."""
    others = [node for i, node in enumerate(nodes) if i != j]
    poly = np.poly1d(others, r=True)
    return poly / poly(nodes[j])


def dpmpp_3m(x, i, m):
    t, s, nodes = GRID[i], GRID[i + 1], [lam(time) for time in GRID[max(i - 2, 0) : i + 1]]
    x = sigma(s) / sigma(t) * x
    for j in range(len(nodes)):
        weight = quad(lambda at, poly: np.exp(at) * poly(at), lam(t), lam(s), args=(cardinal(nodes, j),), epsabs=0)[0]
        x = x + sigma(s) * weight * m[len(m) - len(nodes) + j]
    return x


def lms(x, i, e):
    """k-diffusion: coefficients are integrals over sigma by scipy's `quad`."""
    t, s, nodes = GRID[i], GRID[i + 1], [rho(time) for time in GRID[max(i - 3, 0) : i + 1]]
    y = x / alpha(t)
    for j in range(len(nodes)):
        y = y + quad(cardinal(nodes, j), rho(t), rho(s), epsrel=1e-10)[0] * e[len(e) - len(nodes) + j]
    return alpha(s) * y


def deis_tab3(x, i, e):
    """Integrals of l_j(t) drho(t), by parts: no slope of rho is needed."""
    t, s, nodes = GRID[i], GRID[i + 1], GRID[max(i - 3, 0) : i + 1]
    y = x / alpha(t)
    for j in range(len(nodes)):
        poly = cardinal(nodes, j)
        inner = quad(lambda time, slope: rho(time) * slope(time), t, s, args=(poly.deriv(),), epsabs=0)[0]
        y = y + (rho(s) * poly(s) - rho(t) * poly(t) - inner) * e[len(e) - len(nodes) + j]
    return alpha(s) * y


def ipndm_v(x, i, e):
    """Weights that integrate 1, r, r^2, r^3 over the step, by their linear system."""
    t, s, nodes = GRID[i], GRID[i + 1], np.array([rho(time) for time in GRID[max(i - 3, 0) : i + 1]]) - rho(GRID[i])
    power, end = np.arange(len(nodes)), rho(s) - rho(t)
    weights = np.linalg.solve(nodes[None] ** power[:, None], end ** (power + 1) / (power + 1))
    return alpha(s) * (x / alpha(t) + np.tensordot(weights, np.stack(e[-len(nodes) :]), 1))


AB = [[1], [-1 / 2, 3 / 2], [5 / 12, -16 / 12, 23 / 12], [-9 / 24, 37 / 24, -59 / 24, 55 / 24]]


def ipndm(x, i, e):
    weights = AB[min(i, 3)]
    return ddim(x, np.tensordot(weights, np.stack(e[-len(weights) :]), 1), GRID[i], GRID[i + 1])


def pndm(x, i, e):
    t, s = GRID[i], GRID[i + 1]
    if i >= 3:
        return ipndm(x, i, e)
    middle = (t + s) / 2
    e2 = eps(ddim(x, e[-1], t, middle), middle)
    e3 = eps(ddim(x, e2, t, middle), middle)
    e4 = eps(ddim(x, e3, t, s), s)
    return ddim(x, (e[-1] + 2 * e2 + 2 * e3 + e4) / 6, t, s)


def gradient_estimation(x, i, e):
    return ddim(x, e[-1] if i == 0 else 2 * e[-1] - e[-2], GRID[i], GRID[i + 1])


def deis_logrho3(x, i, e):
    t, s, nodes = GRID[i], GRID[i + 1], [-lam(time) for time in GRID[max(i - 2, 0) : i + 1]]
    y = x / alpha(t)
    for j in range(len(nodes)):
        weight = quad(lambda at, poly: np.exp(at) * poly(at), -lam(t), -lam(s), args=(cardinal(nodes, j),), epsabs=0)[0]
        y = y + weight * e[len(e) - len(nodes) + j]
    return alpha(s) * y


def unipc(p, variant, value=x0):
    """Predict, evaluate, correct, with both weights from R rho = b / B; one unknown is 1/2."""
    (keep, scale), sign = ((sigma, alpha), -1) if value is x0 else ((alpha, sigma), 1)

    def update(x, before, i, m, order, new=None):
        """From GRID[i], whose value is m[i], to the next time; `new` is the value there."""
        t, s = GRID[i], GRID[i + 1]
        h = lam(s) - lam(t)
        hh = sign * h
        b_h = np.expm1(hh) if variant == "bh2" else hh
        ratios = [(lam(GRID[i - k]) - lam(t)) / h for k in range(1, order)] + ([1.0] if new is not None else [])
        changes = [m[i - k] - m[i] for k in range(1, order)] + ([new - m[i]] if new is not None else [])
        rows, right, factorial, rest = [], [], 1, np.expm1(hh) / hh - 1
        for k in range(1, len(ratios) + 1):
            rows.append(np.array(ratios) ** (k - 1))
            factorial *= k
            right.append(rest * factorial / b_h)
            rest = rest / hh - 1 / (factorial * (k + 1))
        weights = [0.5] if len(ratios) == 1 else np.linalg.solve(rows, right) if ratios else []
        x = keep(s) / keep(t) * before - scale(s) * np.expm1(hh) * m[i]
        for weight, change, ratio in zip(weights, changes, ratios, strict=True):
            x = x - scale(s) * b_h * weight * change / ratio
        return x

    def run():
        x, before, m, order = START, START, [], 0
        for i, t in enumerate(GRID[:-1]):
            new = value(x, t)
            if i:
                x = update(x, before, i - 1, m, order, new)
            m.append(new)
            order, before = min(i + 1, p), x
            x = update(x, before, i, m, order)
        return x

    return run


LOOPS: dict[str, Callable[[], np.ndarray]] = {
    "dpmpp_2m": lambda: with_history(dpmpp_2m)(x0),
    "dpmpp_3m": lambda: with_history(dpmpp_3m)(x0),
    "dpmpp_3m_published": lambda: with_history(published_3m)(x0),
    "dpmpp_2s": lambda: steps_of(dpmpp_2s),
    "dpmpp_3s": lambda: steps_of(dpmpp_3s),
    "dpm_solver_2": lambda: steps_of(dpm_solver_2),
    "dpm_solver_3": lambda: steps_of(dpm_solver_3),
    "dpm_solver_2m": lambda: with_history(dpm_solver_2m)(eps),
    "dpm_2": lambda: steps_of(dpm_2),
    "lms": lambda: with_history(lms)(eps),
    "ipndm_v": lambda: with_history(ipndm_v)(eps),
    "deis_rhoab3": lambda: with_history(lms)(eps),
    "deis_tab3": lambda: with_history(deis_tab3)(eps),
    "deis_logrho3": lambda: with_history(deis_logrho3)(eps),
    "ipndm": lambda: with_history(ipndm)(eps),
    "pndm": lambda: with_history(pndm)(eps),
    "gradient_estimation": lambda: with_history(gradient_estimation)(eps),
    "unipc1": unipc(1, "bh2"),
    "unipc2": unipc(2, "bh2"),
    "unipc3": unipc(3, "bh2"),
    "unipc4": unipc(4, "bh2"),
    "unipc3_eps": unipc(3, "bh2", eps),
    "unipc5_eps": unipc(5, "bh2", eps),
    "unipc1_bh1": unipc(1, "bh1"),
    "unipc2_bh1": unipc(2, "bh1"),
    "unipc3_bh1": unipc(3, "bh1"),
    "unipc2_bh1_eps": unipc(2, "bh1", eps),
    "res_2s": res([0.5]),
    "res_3s": res([0.5, 1.0]),
}
