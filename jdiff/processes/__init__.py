"""Noising processes. Formulas and conventions: `base.py`."""

from jdiff.processes.base import Process, match
from jdiff.processes.flow import RectifiedFlow
from jdiff.processes.ve import EDM, VE
from jdiff.processes.vp import VP

__all__ = ["EDM", "VE", "VP", "Process", "RectifiedFlow", "match"]
