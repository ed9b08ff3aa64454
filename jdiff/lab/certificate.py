"""What a solver claims and what it shows: its orders on a target, measured in float64 over a process's whole span."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdiff.lab.defects import multistep_weak_error
from jdiff.lab.measure import (
    end_errors,
    gaussian_moments,
    measured_order,
    moment_error,
    path_errors,
)
from jdiff.lab.problems import exact_end, starts
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


# Steps over which orders are measured, where the methods show them.
END, WEAK, STRONG = (128, 256, 512, 1024, 2048), (4096, 8192, 16384, 32768), (32, 64, 128, 256)
LATE = (128, 192, 256)  # of `late_grid`: errors without noise show the order between grids close to each other


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
        fit = _fit(LATE, *zip(*measured, strict=True)) if len(measured) == len(LATE) else None
    else:
        raise TypeError(f"the weak error of a method with memory is known for a StochasticMultistep, got {solver}")
    return {"weak": fit} if fit else {}


def _finest(steps: Sequence[int], errors: Sequence[float], floor: float) -> dict:
    """The order from the four finest grids whose errors are above the floor."""
    usable = [(n, error) for n, error in zip(steps, errors, strict=True) if error > floor][-4:]
    if len(usable) < 3:
        raise ValueError(f"an order needs three errors above {floor}, got {errors} at {list(steps)} steps")
    return _fit(*zip(*usable, strict=True))


def certificate(
    name: str,
    solver: Solver,
    process: Process,
    target: Distribution,
    tell: Callable[[str], None] = lambda text: None,
    rtol: float = 1e-11,
    most: int = 2,
) -> dict[str, Any]:
    """Documented and measured orders by kind: "end" for a method without noise, else "weak" and, if it has one,
    "strong". A weak order is exact for a Gaussian target. For another it is that of `weak_error`, or of
    `multistep_weak_error` with the interval of its standard errors, over `late_grid`; it is left out where these do not
    know three errors, with `most` batches. `rtol` is that of `exact_end`; errors of the end point below thirty times
    that are left out."""
    grid = lambda n: even_grid(process, n)
    orders: dict[str, Any] = {}
    if not solver.stochastic:
        tell(f"{name}: end point")
        t_min, t_max = process.time_span
        x = starts(process, 64)
        exact = exact_end(target, process, x, t_max, t_min, rtol)
        errors = end_errors(solver, process, target, [grid(n) for n in END], x, exact)
        order = _finest(END, errors, 30 * rtol)
        return {"solver": name, "documented": {"end": solver.order}, "orders": {"end": order}}
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
