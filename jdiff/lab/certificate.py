"""What a solver claims and what it shows: its orders on a target, measured in float64 over a process's whole span."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdiff.lab.defects import multistep_weak_error
from jdiff.lab.measure import (
    errors_on_the_way,
    gaussian_moments,
    measured_order,
    moment_error,
    path_errors,
)
from jdiff.lab.problems import exact_path, starts
from jdiff.lab.weak import memoryless, weak_error
from jdiff.oracles import Distribution, Mixture
from jdiff.processes import Process
from jdiff.samplers import Solver, log_snr, uniform
from jdiff.samplers.sde_multistep import StochasticMultistep
from jdiff.typing import Array


def even_grid(process: Process, n: int) -> Array:
    """n + 1 times in equal steps of log-SNR or, where that is infinite, of t; float64."""
    finite = bool(np.isfinite(process.log_snr(jnp.asarray(process.time_span[1]))))
    return (log_snr if finite else uniform)(process, n + 1, dtype=jnp.float64)


SIGNAL = 0.1  # the signal-to-noise ratio at which weak errors on a lattice begin


def late_grid(process: Process, n: int) -> Array:
    """n + 1 times in equal steps of log-SNR from a signal-to-noise ratio of `SIGNAL`, where the target begins to show,
    or from the process's own start if that comes later; float64."""
    end, begin = process.log_snr(jnp.asarray(process.time_span, jnp.float64))
    begin = jnp.maximum(begin, np.log(SIGNAL))
    return process.time(jnp.linspace(begin, end, n + 1)).at[-1].set(process.time_span[0])


# Steps over which orders are measured, where the methods show them. Errors that are not sampled show the order between
# grids close to each other: soon after the highest orders show, they meet rounding.
GLOBAL, WEAK, STRONG = (256, 384, 512, 768, 1024), (4096, 8192, 16384, 32768), (32, 64, 128, 256)
SHARED = math.gcd(*GLOBAL)  # steps between times that all these grids share
LATE = (192, 256, 384)  # of `late_grid`


def _fit(steps: Sequence[int], errors: Sequence[float], standard_errors: Sequence[float] | None = None) -> dict:
    """The order with what it was measured from."""
    order = measured_order(steps, errors, standard_errors)
    return order._asdict() | {"steps": list(steps), "errors": list(errors)}


def _off_gaussians(solver: Solver, process: Process, target: Distribution, most: int) -> dict[str, dict]:
    """The weak order from three errors; none if one of these is not known."""
    grids = [late_grid(process, n) for n in LATE]
    if memoryless(solver):
        errors = [error for grid in grids if (error := weak_error(solver, process, target, grid)) is not None]
        fit = _fit(LATE, errors) if len(errors) == len(LATE) else None
    elif isinstance(solver, StochasticMultistep):
        found = [multistep_weak_error(solver, process, target, grid, most=most) for grid in grids]
        measured = [pair for pair in found if pair is not None]
        fit = _fit(LATE, *zip(*measured, strict=True)) if len(measured) == len(grids) else None
    else:
        raise TypeError(f"the weak error of a method with memory is known for a StochasticMultistep, got {solver}")
    return {"weak": fit} if fit else {}


def _off_noise(solver: Solver, process: Process, target: Distribution, rtol: float) -> dict:
    """The order of the error of the whole way, from the four finest grids where that is above the exact path's own,
    with the errors of the end point beside it."""
    grids, x, floor = [even_grid(process, n) for n in GLOBAL], starts(process, 64), 30 * rtol
    exact = exact_path(target, process, x, grids[0][:: GLOBAL[0] // SHARED], rtol)
    errors = errors_on_the_way(solver, process, target, grids, x, exact)
    whole = np.sqrt(np.mean(errors[:, 1:] ** 2, axis=1))
    usable = np.flatnonzero(whole > floor)[-4:]
    if len(usable) < 3:
        raise ValueError(f"an order needs three errors above {floor}, got {whole.tolist()} at {list(GLOBAL)} steps")
    steps = [GLOBAL[number] for number in usable]
    return _fit(steps, whole[usable].tolist()) | {"end_errors": errors[usable, -1].tolist()}


def certificate(
    name: str,
    solver: Solver,
    process: Process,
    target: Distribution,
    tell: Callable[[str], None] = lambda text: None,
    rtol: float = 1e-11,
    most: int = 2,
) -> dict[str, Any]:
    """Documented and measured orders by kind: "global" for a method without noise, else "weak" and, if it has one,
    "strong". The global order is that of the root mean square error on the whole way: at a single time, the end too,
    the leading term of the error may be about to change its sign. A weak order is exact for a Gaussian target. For
    another it is that of `weak_error`, or of `multistep_weak_error` with the interval of its standard errors, over
    `late_grid`; it is left out where these do not know three errors, with `most` batches. `rtol` is that of
    `exact_path`; global errors below thirty times that are left out."""
    grid = lambda n: even_grid(process, n)
    orders: dict[str, Any] = {}
    if not solver.stochastic:
        tell(f"{name}: the way")
        order = _off_noise(solver, process, target, rtol)
        return {"solver": name, "documented": {"global": solver.order}, "orders": {"global": order}}
    tell(f"{name}: moments")
    if solver.order == 0:
        pass  # a bias that stays has no order
    elif isinstance(target, Mixture) and len(target.means) == 1:
        run, t_min = gaussian_moments(solver), process.time_span[0]
        errors = [moment_error(run(process, target, grid(n)), process, target, t_min) for n in WEAK]
        orders["weak"] = _fit(WEAK, errors)
    else:
        orders |= _off_gaussians(solver, process, target, most)
    if solver.strong_order is not None:
        tell(f"{name}: paths")
        orders["strong"] = _fit(STRONG, path_errors(solver, process, target, grid, STRONG))
    documented: dict[str, float] = {"weak": solver.order}
    if solver.strong_order is not None:
        documented["strong"] = solver.strong_order
    return {"solver": name, "documented": documented, "orders": orders}
