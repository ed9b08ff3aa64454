"""Solvers, time grids and the sampling loop. A new solver is one file here and its rows in `SOLVERS`."""

from jdiff.samplers.align import align, step_costs
from jdiff.samplers.base import Noise, Solver, Times, evaluate
from jdiff.samplers.ddim import DDIM
from jdiff.samplers.ddpm import DDPM
from jdiff.samplers.dpmpp import DPMpp2M, DPMpp3M
from jdiff.samplers.euler import Euler
from jdiff.samplers.grids import (
    GRIDS,
    beta,
    karras,
    leading,
    linear_quadratic,
    linspace,
    log_snr,
    quadratic,
    trailing,
    uniform,
)
from jdiff.samplers.heun import Heun
from jdiff.samplers.loop import checked, integrate, sample
from jdiff.samplers.noise import brownian, independent
from jdiff.samplers.search import SearchedGrid, load_grid, search

# The methods by the names that people know, with the settings that go by that name.
SOLVERS: dict[str, Solver] = {
    "ddpm": DDPM(),
    "ddpm_beta": DDPM(variance="beta"),
    "ddim": DDIM(),
    "euler": Euler(),
    "heun": Heun(),
    "dpmpp_2m": DPMpp2M(),
    "dpmpp_3m": DPMpp3M(),
}

__all__ = ["DDIM", "DDPM", "GRIDS", "SOLVERS", "DPMpp2M", "DPMpp3M", "Euler", "Heun", "Noise", "Solver", "Times"]
__all__ += ["brownian", "checked", "evaluate", "independent", "integrate", "karras", "log_snr", "sample", "uniform"]
__all__ += [
    "SearchedGrid",
    "align",
    "beta",
    "leading",
    "linear_quadratic",
    "linspace",
    "load_grid",
    "quadratic",
    "search",
]
__all__ += ["step_costs", "trailing"]
