"""Solvers, time grids and the sampling loop. A new solver is one file here and its row in `SOLVERS`."""

from jdiff.samplers.base import Solver
from jdiff.samplers.ddim import DDIM
from jdiff.samplers.ddpm import DDPM
from jdiff.samplers.dpmpp_2m import DPMpp2M
from jdiff.samplers.euler import Euler
from jdiff.samplers.grids import GRIDS, karras, log_snr, uniform
from jdiff.samplers.heun import Heun
from jdiff.samplers.loop import sample

SOLVERS: dict[str, type[Solver]] = {"ddpm": DDPM, "ddim": DDIM, "euler": Euler, "heun": Heun, "dpmpp_2m": DPMpp2M}

__all__ = ["DDIM", "DDPM", "GRIDS", "SOLVERS", "DPMpp2M", "Euler", "Heun", "Solver"]
__all__ += ["karras", "log_snr", "sample", "uniform"]
