"""Solvers, time grids and the sampling loop. A new solver is one file here and its rows in `SOLVERS`."""

from jdiff.samplers.adaptive import Solved, integrate_adaptive, sample_adaptive
from jdiff.samplers.align import align, step_costs
from jdiff.samplers.analytic import NoiseEnergy, noise_energy
from jdiff.samplers.ancestral import Ancestral2
from jdiff.samplers.base import Noise, Solver, Times, evaluate
from jdiff.samplers.churn import EDMStochastic, Interval, Restart
from jdiff.samplers.ddim import DDIM
from jdiff.samplers.ddpm import DDPM
from jdiff.samplers.deis import DEIS
from jdiff.samplers.dpmpp import DPMpp2M, DPMpp3M, DPMSolver2M
from jdiff.samplers.dpmpp_sde import DPMpp2MSDE, DPMpp3MSDE
from jdiff.samplers.er_sde import ERSDE
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
from jdiff.samplers.ipndm import IPNDM, GradientEstimation
from jdiff.samplers.langevin import AnnealedLangevin, PredictorCorrector
from jdiff.samplers.limits import Clip, DynamicThreshold, Limit
from jdiff.samplers.loop import checked, integrate, sample
from jdiff.samplers.noise import brownian, independent
from jdiff.samplers.pndm import PNDM
from jdiff.samplers.runge_kutta import RES, DPMSolver
from jdiff.samplers.sa_solver import SASolver
from jdiff.samplers.sde import EulerMaruyama, ReverseDiffusion
from jdiff.samplers.search import SearchedGrid, load_grid, search
from jdiff.samplers.seeds import SEEDS
from jdiff.samplers.tabulated import Rows, Tabulated
from jdiff.samplers.unipc import UniPC

# The methods by the names that people know, with the settings that go by that name.
SOLVERS: dict[str, Solver] = {
    "ddpm": DDPM(),
    "ddpm_beta": DDPM(variance="beta"),
    "ddim": DDIM(),
    "euler": Euler(),
    "heun": Heun(),
    "dpmpp_2m": DPMpp2M(),
    "dpmpp_3m": DPMpp3M(),
    "dpmpp_3m_published": DPMpp3M(published=True),
    "dpmpp_2s": DPMSolver(order=2, space="x0"),
    "dpmpp_3s": DPMSolver(order=3, space="x0"),
    "dpm_solver_2": DPMSolver(order=2),
    "dpm_solver_3": DPMSolver(order=3),
    "dpm_solver_2m": DPMSolver2M(),
    "lms": DEIS(variable="rho"),
    "deis_tab3": DEIS(variable="t"),
    "deis_logrho3": DEIS(variable="log_rho", order=3),
    "ipndm": IPNDM(),
    "pndm": PNDM(),
    "gradient_estimation": GradientEstimation(),
    "unipc1": UniPC(p=1),
    "unipc2": UniPC(p=2),
    "unipc3": UniPC(p=3),
    "unipc4": UniPC(p=4),
    "unipc3_eps": UniPC(p=3, space="eps"),
    "unipc5_eps": UniPC(p=5, space="eps"),
    "unipc1_bh1": UniPC(p=1, variant="bh1"),
    "unipc2_bh1": UniPC(p=2, variant="bh1"),
    "res_2s": RES(order=2),
    "res_3s": RES(order=3),
    "euler_ancestral": DDIM(eta=1.0),  # k-diffusion's, exactly
    "dpm_2_ancestral": Ancestral2(),
    "dpmpp_2s_ancestral": Ancestral2(space="x0"),
    "edm": EDMStochastic(),
    "restart": Restart(),
    "euler_maruyama": EulerMaruyama(),
    "reverse_diffusion": ReverseDiffusion(),
    "predictor_corrector": PredictorCorrector(),
    "annealed_langevin": AnnealedLangevin(),
    "dpmpp_2s_sde": SEEDS(space="x0"),
    "dpmpp_2m_sde": DPMpp2MSDE(),
    "dpmpp_3m_sde": DPMpp3MSDE(),
    "seeds_2": SEEDS(),
    "seeds_3": SEEDS(stages=3),
    "er_sde_1": ERSDE(memory=1),
    "er_sde_2": ERSDE(memory=2),
    "er_sde_3": ERSDE(),
    "sa_solver": SASolver(),
}
OTHER_NAMES = {"dpm_2": "dpm_solver_2", "deis_rhoab3": "lms", "ipndm_v": "lms"}  # of the same methods
SOLVERS |= {name: SOLVERS[of] for name, of in OTHER_NAMES.items()}

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
__all__ += ["ERSDE", "SEEDS", "Ancestral2", "AnnealedLangevin", "DPMpp2MSDE", "DPMpp3MSDE", "EDMStochastic"]
__all__ += ["EulerMaruyama", "Interval", "PredictorCorrector", "Restart", "ReverseDiffusion", "SASolver"]
__all__ += ["DEIS", "IPNDM", "OTHER_NAMES", "PNDM", "RES", "DPMSolver", "DPMSolver2M", "GradientEstimation", "UniPC"]
__all__ += ["NoiseEnergy", "Solved", "integrate_adaptive", "noise_energy", "sample_adaptive"]
__all__ += ["Clip", "DynamicThreshold", "Limit", "Rows", "Tabulated"]
