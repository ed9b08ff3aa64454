"""A certificate for every solver: measured order, error by network evaluations, evaluations used, float32 and float64.

    python experiments/solver_certificates.py [--json] [SOLVER ...]

Orders are measured on a ring of eight modes and on an anisotropic Gaussian, VP from t = 1 to 0.05, over grids even in
log-SNR. For methods without noise, of the root mean square error at 128 times on the way, against SciPy's DOP853, over
256 to 1024 steps (and with beta_max = 40, for a start at which the first steps of multistep methods, which are of lower
order, count little). For those with noise, the strong order (on common Brownian paths) and the weak one, of moments. On
the Gaussian these are exact. On the ring they are of the mean, the second moments and E |x|^4, from where the
signal-to-noise ratio is 0.1, over 192, 256 and 384 steps: for one-step methods without sampling (`jdiff/lab/weak.py`),
for multistep ones nearly so, to some percent (`jdiff/lab/defects.py`).
Errors by evaluations are those of the ring under EDM, sigma 80 to 0.002, as in `jdiff lab`. The results are in
experiments/results/solver_certificates.{json,md,png}; named solvers are measured anew and the others kept.
"""

import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jdiff import lab
from jdiff.lab.certificate import LATE
from jdiff.processes import EDM, VP
from jdiff.samplers import OTHER_NAMES, SOLVERS, Solver, integrate, log_snr

RESULTS = Path(__file__).parent / "results"
TARGETS = ("gaussian", "ring8")
BUDGETS = (5, 10, 20, 40, 80)
ORDERS, ODE_ORDERS, ERRORS = VP(t_min=0.05), VP(t_min=0.05, beta_max=40.0), EDM()
STARTS = 2048
MOST = 8  # batches of paths for the weak order of a multistep method
DISTINCT = [name for name in SOLVERS if name not in OTHER_NAMES]


def evaluations(solver: Solver, steps: int) -> int:
    """How often the denoiser is called over a number of steps, counted as it runs."""
    calls, target = [], lab.target("ring8")

    def denoise(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return target.predict(ERRORS, x, t)

    x, grid = lab.starts(ERRORS, 1), log_snr(ERRORS, steps + 1, jnp.float64)
    jax.block_until_ready(integrate(lab.keys_of(1), x, denoise, ERRORS, solver, grid))
    jax.effects_barrier()
    return len(calls)


def errors(solver: Solver, x: jax.Array, exact: np.ndarray) -> list[dict]:
    """Error of the end point, or of the moments of a method with noise, for each budget that allows a step."""
    target, rows = lab.target("ring8"), []
    for budget in BUDGETS:
        if not (steps := lab.steps_for(solver, budget)):
            continue
        row: dict[str, float] = {"nfe": solver.nfe(steps), "steps": steps}
        if budget == BUDGETS[0] and evaluations(solver, steps) != row["nfe"]:
            raise ValueError(
                f"{solver} makes {evaluations(solver, steps)} evaluations in {steps} steps, not {row['nfe']}"
            )
        for dtype in (jnp.float64, jnp.float32) if budget == BUDGETS[-1] else (jnp.float64,):
            grid = log_snr(ERRORS, steps + 1, dtype)
            if solver.stochastic:
                error, _ = lab.sampled_moment_error(solver, ERRORS, target, grid, x)
            else:
                (error,) = lab.end_errors(solver, ERRORS, target, [grid], x, exact)
            row[dtype.__name__] = error
        rows.append(row)
    return rows


def certify(name: str, solver: Solver, x: jax.Array, exact: np.ndarray, tell) -> dict:
    row = {"solver": name, "stochastic": bool(solver.stochastic), "orders": {}}
    for target in TARGETS:
        tell(f"{name}: orders on {target}")
        process = ORDERS if solver.stochastic else ODE_ORDERS
        found = lab.certificate(name, solver, process, lab.target(target), rtol=1e-13, most=MOST)
        row["documented"], row["orders"][target] = found["documented"], found["orders"]
    tell(f"{name}: errors")
    return row | {"errors": errors(solver, x, exact)}


def holds(row: dict) -> bool:
    """Whether every measured order is within 0.2 of the documented one."""
    return all(
        abs(measured["order"] - row["documented"][kind]) <= 0.2
        for orders in row["orders"].values()
        for kind, measured in orders.items()
    )


def end_alone(rows: list[dict]) -> str:
    """The orders of the end point that are more than 0.2 away from the documented ones."""
    found = []
    for row in rows:
        for target, orders in row["orders"].items():
            if measured := orders.get("global"):
                order = lab.measured_order(measured["steps"], measured["end_errors"]).order
                if abs(order - row["documented"]["global"]) > 0.2:
                    found.append(f"{row['solver']} {order:.2f} ({target})")
    return ", ".join(found) or "none is more than 0.2 away"


def earlier(rows: list[dict]) -> list[str]:
    """The solvers whose weak orders on the ring were measured over other steps than they would be now."""
    measured = {row["solver"]: row["orders"]["ring8"].get("weak") for row in rows}
    return [name for name, weak in measured.items() if weak and weak["steps"] != list(LATE)]


def table(rows: list[dict]) -> str:
    """The results in Markdown."""
    old = earlier(rows)
    lines = [
        "# Certificates of the solvers",
        "",
        *(__doc__ or "").split("\n\n")[2].splitlines(),
        "",
        "Orders with their 95 % confidence intervals, documented in brackets; * marks what is more than 0.2 away.",
        f"Of the end point alone, where the leading term of an error may be changing its sign: {end_alone(rows)}.",
        *([f"Weak orders on the ring that are older, over other steps: {', '.join(old)}."] if old else []),
        "",
        "| solver | order | Gaussian | ring |",
        "|---|---|---|---|",
    ]
    for row in rows:
        for kind, documented in row["documented"].items():
            cells = []
            for target in TARGETS:
                measured = row["orders"][target].get(kind)
                away = measured and abs(measured["order"] - documented) > 0.2
                cell = f"{measured['order']:.2f} ± {measured['half_width']:.2f}" if measured else ""
                cells.append(cell + " *" * bool(away))
            lines.append(f"| {row['solver']} | {kind} ({documented:g}) | {' | '.join(cells)} |")
    for noisy, what in (
        (False, "RMS error of the end point, per coordinate"),
        (True, f"Error of mean and covariance of {STARTS} samples, whose own scatter is about 0.03"),
    ):
        chosen = [row for row in rows if row["stochastic"] == noisy]
        if not chosen:
            continue
        lines += ["", f"## {what}, ring under EDM", ""]
        lines += ["| solver | " + " | ".join(f"NFE {n}" for n in BUDGETS) + " | float32 at the last |"]
        lines += ["|---" * (len(BUDGETS) + 2) + "|"]
        for row in chosen:
            by_budget = {}
            for entry in row["errors"]:
                budget = next(n for n in BUDGETS if n >= entry["nfe"])
                by_budget[budget] = f"{entry['float64']:.2e}" + (f" ({entry['nfe']})" * (entry["nfe"] != budget))
            cells = [by_budget.get(n, "") for n in BUDGETS]
            lines.append(f"| {row['solver']} | {' | '.join(cells)} | {row['errors'][-1]['float32']:.2e} |")
    lines += ["", "In brackets: the evaluations that were made, where a step does not divide the budget."]
    others = ", ".join(f"{name} is {of}" for name, of in OTHER_NAMES.items())
    lines += ["A weak order on the ring is missing where three errors were not known to a tenth: of multistep methods,"]
    lines += [f"with up to {MOST} batches of 8,192 paths, each telling of one row in 32. Other names: {others}."]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """Left: error by evaluations. Right: measured orders beside the documented ones."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 8.5), layout="constrained", width_ratios=(1.15, 1))
    exact = [row for row in rows if not row["stochastic"]]
    colours = plt.get_cmap("turbo")(np.linspace(0.03, 0.97, max(len(exact), 2)))
    last = lambda row: row["errors"][-1]["float64"]
    for number, row in enumerate(sorted(exact, key=last, reverse=True)):
        nfe, values = zip(*[(entry["nfe"], entry["float64"]) for entry in row["errors"]], strict=True)
        left.plot(nfe, values, marker="osD^vP*X"[number % 8], ms=4, lw=1.3, color=colours[number], label=row["solver"])
    left.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="RMS error of the end point")
    left.set_title("Ring of eight modes, EDM, grid even in log-SNR")
    left.set_ylim(top=2)
    left.set_xticks(BUDGETS, map(str, BUDGETS))
    left.minorticks_off()
    left.grid(alpha=0.25)
    left.legend(fontsize=7, ncols=2, title="from worst to best at 80", title_fontsize=8)
    marks = {"gaussian": ("o", "C0"), "ring8": ("s", "C1")}
    names = []
    for row in rows:
        for kind, documented in row["documented"].items():
            y = len(names)
            names.append(row["solver"] if kind == "global" else f"{row['solver']}, {kind}")
            right.plot(
                [documented - 0.2, documented + 0.2], [y, y], lw=5, color="0.85", solid_capstyle="butt", zorder=1
            )
            for shift, target in enumerate(TARGETS):
                if measured := row["orders"][target].get(kind):
                    right.errorbar(
                        measured["order"],
                        y + 0.3 * shift - 0.15,
                        xerr=min(measured["half_width"], 1),
                        fmt=marks[target][0],
                        ms=3.5,
                        lw=0.8,
                        color=marks[target][1],
                        label=target if y == 0 else None,
                        zorder=2,
                    )
    right.set_yticks(range(len(names)), names, fontsize=6.5)
    right.set_ylim(len(names) - 0.3, -0.7)
    right.set(xlabel="measured order, 95 % interval; grey: documented ± 0.2", xlim=(-0.3, 7.5))
    right.set_title("Orders")
    right.grid(axis="x", alpha=0.25)
    right.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write(suffix: str, text: str) -> None:
    """Replaces a file of the results, whole."""
    path = RESULTS / f"solver_certificates{suffix}"
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    os.replace(part, path)


def kept() -> list[dict]:
    """The rows that are there, in the order of the solvers."""
    path = RESULTS / "solver_certificates.json"
    rows = {row["solver"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    return [rows[name] for name in DISTINCT if name in rows]


def keep(row: dict) -> None:
    """Adds a row, at once: a run that is stopped has lost no more than what it was measuring."""
    rows = [other for other in kept() if other["solver"] != row["solver"]]
    write(".json", json.dumps([*rows, row], indent=1) + "\n")


def main(words: list[str]) -> None:
    names = [word for word in words if not word.startswith("-")]
    chosen = {name: lab.lookup(SOLVERS, name, "solver") for name in names or DISTINCT}
    x = lab.starts(ERRORS, STARTS)
    exact = lab.exact_end(lab.target("ring8"), ERRORS, x, *reversed(ERRORS.time_span))
    begin = time.monotonic()
    for number, (name, solver) in enumerate(chosen.items()):
        gone = time.monotonic() - begin
        left = f", {gone / number * (len(chosen) - number) / 60:.0f} min left" if number else ""
        tell = lambda text, number=number, left=left: print(
            f"{number + 1} of {len(chosen)}{left}: {text}", file=sys.stderr, flush=True
        )
        keep(certify(name, solver, x, exact, tell))
        jax.clear_caches()
    rows = kept()
    draw(rows, RESULTS / "solver_certificates.png")
    write(".md", table(rows))
    print(json.dumps(rows) if "--json" in words else table(rows))
    away = [row["solver"] for row in rows if not holds(row)]
    print(f"orders more than 0.2 from the documented: {', '.join(away) or 'none'}", file=sys.stderr)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main(sys.argv[1:])
