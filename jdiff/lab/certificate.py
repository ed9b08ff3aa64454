"""What a solver claims and what it shows: its orders on a target, measured in float64 over a process's whole span."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdiff.lab.measure import (
    end_errors,
    gaussian_moments,
    measured_order,
    moment_error,
    moment_errors,
    path_errors,
)
from jdiff.lab.problems import exact_end, starts
from jdiff.oracles import Distribution, Mixture
from jdiff.processes import Process
from jdiff.samplers import Solver, log_snr, uniform
from jdiff.typing import Array


def even_grid(process: Process, n: int) -> Array:
    """n + 1 times in equal steps of log-SNR or, where that is infinite, of t; float64."""
    finite = bool(np.isfinite(process.log_snr(jnp.asarray(process.time_span[1]))))
    return (log_snr if finite else uniform)(process, n + 1, dtype=jnp.float64)


def _fit(steps: Sequence[int], errors: Sequence[float], floor: float = 0.0, last: int = 4) -> dict[str, Any]:
    """The order from the finest grids, as many as `last`, whose errors are above the floor."""
    usable = [(n, error) for n, error in zip(steps, errors, strict=True) if error > floor][-last:]
    if len(usable) < 3:
        raise ValueError(f"an order needs three errors above {floor}, got {errors} at {list(steps)} steps")
    order = measured_order([n for n, _ in usable], [error for _, error in usable])
    return order._asdict() | {"steps": [n for n, _ in usable], "errors": [error for _, error in usable]}


def certificate(
    name: str,
    solver: Solver,
    process: Process,
    target: Distribution,
    tell: Callable[[str], None] = lambda text: None,
    rtol: float = 1e-11,
) -> dict[str, Any]:
    """Documented and measured orders by kind: "end" for a method without noise, else "weak" and, if it has one,
    "strong". A weak order is exact for a Gaussian target. For another it is that of differences of sampled moments, and
    left out where these are not known to a tenth, or where the noise belongs to no path. `rtol` is that of `exact_end`;
    errors of the end point below a hundred times that are left out."""
    grid = lambda n: even_grid(process, n)
    orders: dict[str, Any] = {}
    if not solver.stochastic:
        tell(f"{name}: end point")
        steps, (t_min, t_max) = (32, 64, 128, 256, 512, 1024), process.time_span
        x = starts(process, 64)
        exact = exact_end(target, process, x, t_max, t_min, rtol)
        errors = end_errors(solver, process, target, [grid(n) for n in steps], x, exact)
        return {"solver": name, "documented": {"end": solver.order}, "orders": {"end": _fit(steps, errors, 100 * rtol)}}
    tell(f"{name}: moments")
    if solver.order == 0:
        pass  # a bias that stays has no order
    elif isinstance(target, Mixture) and len(target.means) == 1:
        steps, run = (64, 128, 256, 512), gaussian_moments(solver)
        errors = [moment_error(run(process, target, grid(n)), process, target, process.time_span[0]) for n in steps]
        orders["weak"] = _fit(steps, errors)
    elif solver.strong_order is not None:
        steps = (32, 64, 128)
        changes = moment_errors(solver, process, target, grid, steps)
        if all(error < change / 10 for change, error in changes):
            orders["weak"] = _fit(steps, [change for change, _ in changes])
    if solver.strong_order is not None:
        tell(f"{name}: paths")
        steps = (32, 64, 128, 256)
        orders["strong"] = _fit(steps, path_errors(solver, process, target, grid, steps))
    documented: dict[str, float] = {"weak": solver.order}
    if solver.strong_order is not None:
        documented["strong"] = solver.strong_order
    return {"solver": name, "documented": documented, "orders": orders}
