"""`jdiff lab`: the error of solvers by network evaluations, or their order, on a target with exact answers; float64."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import lab
from jdiff.atomic_files import check_writable
from jdiff.cli.arguments import parse
from jdiff.lab import lookup
from jdiff.locks import locked
from jdiff.oracles import Distribution
from jdiff.processes import Process
from jdiff.samplers import GRIDS, SOLVERS, SearchedGrid, Solver, load_grid, search
from jdiff.samplers.multistep import Multistep
from jdiff.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lab:
    """What `jdiff lab` takes."""

    target: str = "ring8"
    """ringK (K modes), gaussian, mixture, circle or swiss_roll."""
    process: str = "edm"
    """Noising process, over its whole span."""
    solver: str = "ddim,heun,dpmpp_2m"
    """Solvers, separated by commas."""
    nfe: str = "5,10,20,40,80"
    """Network evaluations, separated by commas; the last evaluation, which gives the data, is not made."""
    grid: str = "log_snr"
    """A time grid by its name, or a JSON file that --search wrote."""
    order: bool = False
    """Measure the order of convergence instead, with its 95 % confidence interval."""
    search: Path | None = None
    """Search a grid (and weights, for a multistep method) for each solver and number of evaluations, from the uniform
    log-SNR and the Karras grid; write them into this folder, and give their errors."""
    starts: int = 2048
    """Points that errors are averaged over."""
    seed: int = 0
    """Of the points; a search takes others."""
    dtype: Literal["float64", "float32"] = "float64"
    """Of the solver's arithmetic. What is compared with is float64."""
    out: Path = Path("lab.png")
    """Where the picture goes."""
    json: bool = False
    """Print the figures as JSON."""


def main(words: list[str]) -> None:
    arguments = parse(Lab, words, prog="jdiff lab", description=f"{__doc__}\n\n{_lists()}")
    with jax.enable_x64(True):
        _measure(arguments)


def _measure(arguments: Lab) -> None:
    process = lookup(lab.PROCESSES, arguments.process, "process")
    target = lab.target(arguments.target)
    solvers = {name: lookup(SOLVERS, name, "solver") for name in _names(arguments.solver, "--solver")}
    if arguments.starts < 2:
        raise ValueError(f"--starts must be at least 2, got {arguments.starts}")
    if not arguments.order:
        check_writable(arguments.out)
    with locked(arguments.search, what="searching grids") if arguments.search else contextlib.nullcontext():
        rows = (_orders if arguments.order else _errors)(arguments, process, target, solvers)
    if not arguments.order:
        column = lambda key, name: [row[key] for row in rows if row["solver"] == name]
        curves = {name: (column("nfe", name), column("error", name)) for name in solvers}
        kind = "moments" if any(solver.stochastic for solver in solvers.values()) else "end point, RMS"
        title = f"{arguments.target}, {arguments.process}, {'searched' if arguments.search else arguments.grid} grid"
        lab.draw_errors(curves, arguments.out, title=title, error=f"error of the {kind}")
    if arguments.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
        print(json.dumps(settings | {"rows": rows}))
    else:
        _show(rows, arguments)


def _lists() -> str:
    return "\n".join(
        f"{what}: {', '.join(table)}"
        for what, table in (("Processes", lab.PROCESSES), ("Solvers", SOLVERS), ("Grids", GRIDS))
    )


def _names(words: str, option: str) -> list[str]:
    names = [word.strip() for word in words.split(",") if word.strip()]
    if not names:
        raise ValueError(f"{option} needs names separated by commas, got {words!r}")
    return names


def _budgets(words: str) -> list[int]:
    names = _names(words, "--nfe")
    if not all(name.isdecimal() and int(name) > 0 for name in names):
        raise ValueError(f"--nfe needs positive numbers separated by commas, got {words!r}")
    return sorted(map(int, names))


def _grid(name: str) -> Callable[..., Array]:
    return load_grid(Path(name)) if name.endswith(".json") else lookup(GRIDS, name, "grid")


def _tell(text: str) -> None:
    """Progress, on standard error where somebody watches it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _errors(arguments: Lab, process: Process, target: Distribution, solvers: dict[str, Solver]) -> list[dict]:
    """One row a solver and budget: steps, evaluations, error."""
    x, (t_min, t_max) = lab.starts(process, arguments.starts, arguments.seed), process.time_span
    grid, exact, rows = _grid(arguments.grid), None, []
    for name, solver in solvers.items():
        for budget in _budgets(arguments.nfe):
            _tell(f"{name}, {budget} evaluations")
            steps = lab.steps_for(solver, budget)
            if steps < 1:
                raise ValueError(f"--nfe {budget} is not enough for one step of {name}, which takes {solver.nfe(1)}")
            made = _searched(arguments, process, target, name, solver, steps) if arguments.search else grid
            times = made(process, steps + 1, dtype=jnp.dtype(arguments.dtype))
            method = made.method(solver) if isinstance(made, SearchedGrid) else solver
            row = {"solver": name, "steps": steps, "nfe": solver.nfe(steps)}
            if solver.stochastic:
                row["error"], row["floor"] = lab.sampled_moment_error(method, process, target, times, x)
            else:
                exact = lab.exact_end(target, process, x, t_max, t_min) if exact is None else exact
                row["error"] = lab.end_errors(method, process, target, [times], x, exact)[0]
            if not np.isfinite(row["error"]):
                raise ValueError(f"{name} over {arguments.grid} of {steps + 1} times gives values that are not finite")
            rows.append(row)
    _tell("")
    return rows


def _searched(
    arguments: Lab, process: Process, target: Distribution, name: str, solver: Solver, steps: int
) -> SearchedGrid:
    """Searches, over other points than the table's, and saves."""
    assert arguments.search is not None
    if solver.stochastic:
        raise ValueError(f"--search needs solvers without noise, got {name}")
    if steps < 2:
        raise ValueError(f"--search needs two steps at least, got {steps} of {name}")
    x = lab.starts(process, 512, arguments.seed + 1)
    begins = [GRIDS[grid](process, steps + 1, dtype=jnp.float64) for grid in ("log_snr", "karras")]
    exact = jnp.asarray(lab.exact_end(target, process, x, *reversed(process.time_span)))
    found = search(
        lab.keys_of(len(x)),
        target.denoiser(process),
        process,
        solver,
        name,
        x,
        exact,
        begins,
        weights=isinstance(solver, Multistep),
        report=lambda step, error: _tell(f"{name}, {steps} steps: search {step}, error {error:.3g}"),
    )
    about = f"{arguments.target}, {len(x)} starts of seed {arguments.seed + 1}"
    found = dataclasses.replace(found, about=about)
    found.save(arguments.search / f"{arguments.target}_{arguments.process}_{name}_{steps}.json")
    return found


def _orders(arguments: Lab, process: Process, target: Distribution, solvers: dict[str, Solver]) -> list[dict]:
    """One row a solver: the documented order and the measured one."""
    return [lab.certificate(name, solver, process, target, _tell) for name, solver in solvers.items()]


def _show(rows: list[dict], arguments: Lab) -> None:
    if arguments.order:
        print(f"{'solver':22} kind     documented  measured (95 %)")
        for row in rows:
            for kind, measured in row["orders"].items():
                print(
                    f"{row['solver']:22} {kind:8} {row['documented'][kind]:10g}  "
                    f"{measured['order']:.2f} ± {measured['half_width']:.2f}"
                )
        return
    print(f"{'solver':22} {'NFE':>5} {'steps':>5}   error")
    for row in rows:
        floor = f"   (as many draws of the target: {row['floor']:.2e})" if "floor" in row else ""
        print(f"{row['solver']:22} {row['nfe']:5} {row['steps']:5}   {row['error']:.3e}{floor}")
    print(f"picture: {arguments.out}")
