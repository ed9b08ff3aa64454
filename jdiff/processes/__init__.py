"""Noising processes. Formulas and conventions: `base.py`."""

from jdiff.processes.base import Process, match
from jdiff.processes.cosine import Cosine
from jdiff.processes.discrete import Chain, betas, cosine_betas, linear_betas, scaled_linear_betas
from jdiff.processes.flow import RectifiedFlow
from jdiff.processes.learned import LearnedGamma, linear_gamma
from jdiff.processes.nodes import Nodes, share
from jdiff.processes.shifted import Shifted, flow_shift, resolution_shift, token_shift
from jdiff.processes.ve import EDM, VE
from jdiff.processes.vp import VP, SubVP
from jdiff.processes.zero_snr import ZeroTerminalSNR

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Chain",
    "Cosine",
    "LearnedGamma",
    "Nodes",
    "Process",
    "RectifiedFlow",
    "Shifted",
    "SubVP",
]
__all__ += ["ZeroTerminalSNR", "betas", "cosine_betas", "flow_shift", "linear_betas", "linear_gamma", "match"]
__all__ += ["resolution_shift", "scaled_linear_betas", "share", "token_shift"]
