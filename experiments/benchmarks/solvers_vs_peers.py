"""Error against evaluations: our solvers and searched grids beside diffusers and k-diffusion, in one run.

The probability-flow ODE of a ring of eight modes (radius 1, standard deviation 0.1) from sigma = 80 to 0.002, and of
three more targets: root mean square over 2048 starts and both coordinates, against RK4 with 4000 steps in log sigma, in
float64, with the exact denoiser on both sides. An evaluation is a call of the denoiser for the whole batch; a method of
one a step makes N steps over N + 1 sigmas, and nothing is denoised at the end. Every method runs over every standard
grid. The peers run in an environment of their own, for k-diffusion asks for an old numpy:

    python3 -m venv peers
    peers/bin/pip install -e ".[oracles]"
    peers/bin/pip install --no-deps k-diffusion==0.1.1.post1 torchdiffeq==0.2.5 torchsde==0.2.6 trampoline==0.1.2
    peers/bin/python experiments/benchmarks/solvers_vs_peers.py [--json] [--search]

It writes experiments/results/solvers_vs_peers.{json,md,png}. The searched grids are those of experiments/results/grids;
`--search` finds them anew first, on starts that are not the 2048.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from ode_trial import PROCESS, STARTS, Trial, fine, ring, split, starts
from peers import Peer, circle_denoiser, half_up, k_adaptive, mixture_denoiser, peers
from peers_report import write
from rich.console import Console
from rich.progress import track

from jdiff.oracles import Distribution, UniformRing
from jdiff.samplers import GRIDS, SOLVERS, Solver, load_grid, search

BUDGETS = (5, 10, 20, 40, 80)
STANDARD = ("log_snr", "karras", "uniform", "quadratic", "beta", "linear_quadratic")
RESULTS = Path(__file__).parent.parent / "results"
FOLDER = RESULTS / "grids"
SEARCHED = (("dpmpp_3m", False), ("dpmpp_3m", True), ("unipc3", True))  # solver, and whether its weights, too


def steps_for(solver: Solver, nfe: int) -> int | None:
    """How many steps make this many evaluations."""
    return next((steps for steps in range(1, nfe + 1) if solver.nfe(steps) == nfe), None)


def ours(trial: Trial, told: Callable[[Iterable, str], Iterable]) -> list[dict]:
    """Every deterministic solver over every standard grid."""
    rows = []
    chosen = {name: one for name, one in SOLVERS.items() if one.strong_order is None and not one.stochastic}
    for name, solver in told(list(chosen.items()), "jdiff"):
        for nfe in BUDGETS:
            steps = steps_for(solver, nfe)
            if steps is None:
                continue
            grids = jnp.stack([GRIDS[grid](PROCESS, steps + 1, dtype=jnp.float64) for grid in STANDARD])
            for grid, errors in zip(STANDARD, trial.run(solver, grids), strict=True):
                rows.append({"package": "jdiff", "method": name, "grid": grid, "nfe": nfe, "error": errors})
    return rows


def theirs(trial: Trial, told: Callable[[Iterable, str], Iterable]) -> list[dict]:
    """Every peer over every standard grid."""
    denoise, x, rows = torch_denoiser(trial), torch.tensor(np.asarray(trial.x)), []
    for peer in told(peers(), "peers"):
        for nfe in BUDGETS:
            steps = peer.steps(nfe)
            if steps is None or steps < 1:
                continue
            for grid in STANDARD if peer.grid else ("its own",):
                sigmas = np.asarray(GRIDS[grid](PROCESS, steps + 1, dtype=jnp.float64)) if peer.grid else None
                end = run_peer(peer, denoise, x, sigmas, nfe)
                row = {"package": peer.package, "method": peer.name, "grid": grid, "nfe": nfe}
                rows.append(row | {"error": trial.errors(jnp.asarray(end.double().numpy()))})
    return rows


def run_peer(peer: Peer, denoise: Callable, x, sigmas: np.ndarray | None, nfe: int, shipped: bool = False):
    """The peer's end, with its evaluations counted."""
    calls = []

    def counted(x, sigma):
        calls.append(sigma)
        return denoise(x, sigma)

    if sigmas is None:
        end = peer.run(counted, x, nfe)
    else:
        options = {"nfe": nfe} if peer.steps is half_up else {}
        end = peer.run(counted, x, sigmas, shipped=shipped, **options)
    if len(calls) != nfe:
        raise RuntimeError(f"{peer.name} made {len(calls)} evaluations for {nfe}")
    return end


def torch_denoiser(trial: Trial) -> Callable:
    """The denoiser of the trial in torch, after it has been compared with the oracles."""

    def one(target: Distribution) -> Callable:
        if isinstance(target, UniformRing):
            return circle_denoiser(target.radius, target.std)
        return mixture_denoiser(*jax.tree.leaves(target))

    parts = [one(target) for target in trial.targets.values()]

    def denoise(x, sigma):
        return torch.cat([part(y, sigma) for part, y in zip(parts, x.chunk(len(parts)), strict=True)])

    for sigma in (80.0, 3.0, 0.3, 0.02):
        x = trial.exact + sigma * trial.x / 80
        apart = np.abs(denoise(torch.tensor(np.asarray(x)), sigma).numpy() - trial.denoise(x, jnp.asarray(sigma)).x0)
        if not apart.max() < 1e-11:
            raise RuntimeError(f"the two denoisers differ by {apart.max()} at sigma = {sigma}")
    return denoise


def float32_floor(trial: Trial, rows: list[dict]) -> list[dict]:
    """The best diffusers scheduler of each budget on the ring, with sigmas in float32, as it makes them itself."""
    (target, *_), denoise, x, found = trial.targets, torch_denoiser(trial), torch.tensor(np.asarray(trial.x)), []
    for nfe in BUDGETS:
        mine = [row for row in rows if row["package"] == "diffusers" and row["nfe"] == nfe]
        best = min(mine, key=lambda row: row["error"][target])
        peer = next(peer for peer in peers() if peer.name == best["method"])
        sigmas = np.asarray(GRIDS[best["grid"]](PROCESS, (peer.steps(nfe) or 0) + 1, dtype=jnp.float64))
        ends = [run_peer(peer, denoise, x, sigmas, nfe, shipped).double().numpy() for shipped in (False, True)]
        apart = split(jnp.asarray(ends[1] - ends[0]), len(trial.targets))[0]
        shipped = trial.errors(jnp.asarray(ends[1]))[target]
        floor = float(jnp.sqrt(jnp.mean(apart**2)))
        found.append({"nfe": nfe, "method": best["method"], "float64": best["error"][target], "float32": shipped})
        found[-1]["apart"] = floor
    return found


def adaptive(trial: Trial) -> list[dict]:
    """k-diffusion's adaptive solver on the ring."""
    target = next(iter(trial.targets))
    denoise = mixture_denoiser(*jax.tree.leaves(trial.targets[target]))
    x, rows = torch.tensor(np.asarray(trial.x[:STARTS])), []
    for order in (2, 3):
        for tolerance in (0.5, 0.05, 5e-3, 5e-4, 5e-5):
            calls = []
            counted = lambda x, sigma, calls=calls: (calls.append(sigma), denoise(x, sigma))[1]
            end = k_adaptive(counted, x, order, tolerance)
            error = float(np.sqrt(np.mean((end.numpy() - np.asarray(trial.exact[:STARTS])) ** 2)))
            rows.append(
                {"method": f"dpm_adaptive order {order}, rtol {tolerance:g}", "nfe": len(calls), "error": error}
            )
    return rows


def find(told: Callable[[Iterable, str], Iterable]) -> None:
    """Searches every grid, and saves it."""
    keys, x = starts(1, 512)
    denoise = ring(8).denoiser(PROCESS)
    exact = fine(denoise, x)
    for (name, weights), nfe in told([(one, nfe) for one in SEARCHED for nfe in BUDGETS], "search"):
        begun = time.perf_counter()
        grids = [GRIDS[grid](PROCESS, nfe + 1, dtype=jnp.float64) for grid in ("log_snr", "karras")]
        found = search(keys, denoise, PROCESS, SOLVERS[name], name, x, exact, grids, weights=weights)
        about = f"ring of 8 modes, {len(x)} starts, found in {time.perf_counter() - begun:.0f} s"
        replace(found, about=about).save(FOLDER / f"ring8_{name}{'_weights' if weights else ''}_{nfe}.json")


def searched(trial: Trial, told: Callable[[Iterable, str], Iterable]) -> list[dict]:
    """Errors over the grids that were found."""
    rows = []
    for path in told(sorted(FOLDER.glob("*.json")), "searched"):
        found = load_grid(path)
        grid = found(PROCESS, len(found.times), jnp.float64)
        (errors,) = trial.run(found.method(SOLVERS[found.solver]), grid[None])
        label = f"{found.solver}, {'times' if found.mix is None else 'times and weights'} searched"
        rows.append({"package": "jdiff", "method": label, "grid": path.name, "nfe": len(grid) - 1, "error": errors})
    return rows


def main() -> dict:
    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)  # these arrays are small
    console = Console(stderr=True)
    told = lambda items, title: track(items, title, console=console)
    begun = time.perf_counter()
    if "--search" in sys.argv:
        find(told)
    trial = Trial()
    rows = theirs(trial, told)
    found = {"peers": rows, "jdiff": ours(trial, told), "searched": searched(trial, told)}
    found |= {"adaptive": adaptive(trial), "float32": float32_floor(trial, rows)}
    return found | {"targets": list(trial.targets), "seconds": time.perf_counter() - begun}


if __name__ == "__main__":
    figures = main()
    table = write(figures, RESULTS)
    print(json.dumps(figures) if "--json" in sys.argv else table)
