"""From the steps of a scheduler, each linear in what was seen, to the solver and the process that run them.

States are alpha x0 + sigma eps at the level of their evaluation, whatever the scheduler's own scale is.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jdiff.processes import Nodes, share
from jdiff.samplers import Limit, Rows, Tabulated
from jdiff.typing import Array


class Level(NamedTuple):
    """A noise level, and the label that the network is told there."""

    alpha: float
    sigma: float
    label: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correction:
    """The corrected state: factors of x, the state put aside, the noise before and the values, newest first."""

    x: float = 1.0
    aside: float = 0.0
    noise: float = 0.0
    values: Sequence[float] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One evaluation, at `at`, and the state at `to`: factors as in `samplers.Tabulated`."""

    at: Level
    to: Level
    x: float = 0.0
    aside: float = 0.0
    eps: float = 0.0
    noise: float = 0.0
    values: Sequence[float] = ()
    correction: Correction = Correction()
    keep: bool = False
    log_variance: tuple[float, float] = (0.0, 0.0)


class Table(NamedTuple):
    """A scheduler's sampler over a number of steps."""

    process: Nodes
    solver: Tabulated
    grid: Array
    """Decreasing times: those of the evaluations, each once, and the end."""
    start: float
    """Standard deviation of the first state."""


def tabulate(
    steps: Sequence[Step],
    *,
    space: Literal["x0", "eps", "v"] = "x0",
    limit: Limit | None = None,
    start: float = 1.0,
    learned: bool = False,
) -> Table:
    """The table of steps in their order. Raises ValueError where a factor is not finite."""
    memory = max(1, *(len(step.values) for step in steps), *(len(step.correction.values) for step in steps))
    pad = lambda values: [*values, *[0.0] * (memory - len(values))]
    fixed = [step.correction for step in steps]
    correct = np.array([[one.x, one.aside, one.noise, *pad(one.values)] for one in fixed])
    forward = np.array([[one.x, one.aside, one.eps, one.noise, *pad(one.values)] for one in steps])
    if not (np.isfinite(correct).all() and np.isfinite(forward).all()):
        raise ValueError(f"these settings give factors that are not finite over {len(steps)} evaluations")
    at, to = (np.array([getattr(step, end) for step in steps], np.float64) for end in ("at", "to"))
    process, t = Nodes.placed(*at.T)
    s = share(*to[:, :2].T)
    times = np.unique(np.append(t, s[-1]))[::-1]
    floats = lambda values: jnp.asarray(np.asarray(values, np.float32))
    rows = Rows(
        t=floats(t),
        s=floats(s),
        correct=floats(correct),
        keep=floats([step.keep for step in steps]),
        step=floats(forward),
        log_variance=floats([step.log_variance for step in steps]),
    )
    solver = Tabulated(rows=rows, limit=limit, space=space, draws=bool(forward[:, 3].any()), learned=learned)
    inside = times[(times == 0) | (times >= process.times[1])]
    grid = inside if len(inside) > 1 else np.append(inside, np.float32(0))
    return Table(process, solver, jnp.asarray(grid), float(start))
