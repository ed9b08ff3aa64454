"""What a solver is: frozen values, a plan of its steps, a carry made by `init`, and a `step` from time t to time s.

The step receives the denoiser, so several evaluations are plain code. What depends on the grid alone (coefficients of
a multistep method, inner times) is computed for all steps at once by `plan`, before the loop; what depends on earlier
evaluations is the carry. Times may be traced; alpha may be zero at the first.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import checkify

from jdiff.prediction import Prediction
from jdiff.processes import Process
from jdiff.typing import Array, Denoiser


class Times(NamedTuple):
    """The plan of a method that needs no more than its step's ends: arrays [n - 1], scalars within a step."""

    t: Array  # where the step begins
    s: Array  # where it ends, with less noise


class Noise(NamedTuple):
    """Where a step's standard normal noise [B, ...] comes from (`noise.py`). A step numbers its draws by `part`."""

    between: Callable[..., Array]  # (t, s, part=0): the increment of the driving Brownian motion from t to s < t
    fresh: Callable[..., Array]  # (part=0): noise that belongs to no interval, such as a corrector's


class Solver(abc.ABC):
    """One numerical method for the reverse process. Its values are frozen dataclasses registered as pytrees."""

    order: int  # of the end point for an ODE method; weak order, of the moments, for an SDE method
    strong_order: float | None = None  # of the path, for a method that solves the reverse SDE
    stochastic: bool | Array = False  # whether steps draw noise; such a method cannot run towards more noise
    needs_signal: bool = False  # whether steps from a time without signal (alpha = 0) are refused
    nfe_per_step: int  # network evaluations a step

    def nfe(self, steps: int) -> int:
        """Network evaluations over a number of steps."""
        return self.nfe_per_step * steps

    def plan(self, process: Process, grid: Array) -> Any:
        """What each step needs to know of the grid [n]: a pytree of arrays with one row a step, in their order."""
        return Times(grid[:-1], grid[1:])

    def init(self, x: Array) -> Any:
        """The carry before the first step, for samples x [B, ...]; empty for a one-step method."""
        return ()

    @abc.abstractmethod
    def step(
        self, denoise: Denoiser, process: Process, x: Array, carry: Any, plan: Any, noise: Noise
    ) -> tuple[Array, Any]:
        """x_s and the next carry from x = x_t [B, ...]; `plan` is this step's row."""


def evaluate(denoise: Denoiser, process: Process, x: Array, t: Array) -> tuple[Array, Prediction]:
    """The state that a step goes on from, and the prediction for x [B, ...] at t.

    The state is alpha x0 + sigma eps: x itself, unless guidance means the step to go on along another noise than x's
    (CFG++), which it says by a prediction that is not consistent with x. Every solver calls the denoiser through here.
    Raises ValueError for a prediction of another shape; within `checked`, a value that is not finite is an error.
    """
    prediction = denoise(x, t)
    for name, part in [("x0", prediction.x0), ("eps", prediction.eps)]:
        if part.shape != x.shape:
            raise ValueError(f"the denoiser must predict {name} in the shape of its input, {x.shape}, got {part.shape}")
        # A row of `part` is never taken: where the batch is split over devices, that would bring all of it together.
        axes = tuple(range(1, x.ndim))
        high, low = part.max(axes), part.min(axes)  # both are NaN where there is one
        value = jnp.where(jnp.isfinite(high), low, high)
        bad = ~jnp.isfinite(value)
        row = jnp.argmax(bad)
        checkify.debug_check(
            ~bad.any(),
            f"the denoiser predicted {{value}} as {name} of sample {{row}} at t = {{t}}; it must be finite",
            value=jnp.where(jnp.arange(len(x)) == row, value, 0).sum(),
            row=row,
            t=jnp.asarray(t),
        )
    return process.perturb(prediction.x0, prediction.eps, t), prediction
