"""Steps of adaptive size, by diffrax, for the probability-flow ODE (explicit or implicit) and the reverse SDE.

u = x / sqrt(alpha^2 + sigma^2) is a variance-preserving process whatever the process is, with angle
theta = atan(sigma / alpha) and l = log(alpha / sigma) = -log tan(theta), and

    du/dtheta = cos(theta) eps - sin(theta) x0                                        (probability flow)
    du = (sin(theta) cos(theta) (sin(theta) x0 - cos(theta) eps) - sin(theta) eps) dl + sqrt(2) sin(theta) dW_l

so that the ODE is smooth from zero terminal SNR (theta = pi / 2) to the data (theta = 0). The SDE's noise is additive:
ShARK (arXiv:2110.01515) is of strong order 3/2, on diffrax's virtual Brownian tree. Each sample is solved for itself
and has its own steps, so that it does not depend on its batch.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import lineax

from jdiff import rng
from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.samplers.base import evaluate
from jdiff.samplers.loop import check
from jdiff.typing import Array, Denoiser, Key

Method = Literal["tsit5", "dopri8", "kvaerno5", "sde"]
METHODS = {
    "tsit5": diffrax.Tsit5,
    "dopri8": diffrax.Dopri8,
    "kvaerno5": diffrax.Kvaerno5,  # implicit, for stiff flows of few dimensions: it solves systems of all of x's values
    "sde": diffrax.ShARK,
}


class Solved(NamedTuple):
    """What an adaptive solve ends with."""

    x: Array  # [B, ...]
    steps: Array  # [B]: accepted and rejected
    nfe: Array | None  # [B]: evaluations; None for an implicit method, whose count diffrax does not give


def integrate_adaptive(
    keys: Key,
    x: Array,
    denoise: Denoiser,
    process: Process,
    start: Array | float,
    end: Array | float,
    *,
    method: Method = "tsit5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
) -> Solved:
    """x [B, ...] taken from the time `start` to `end`; row b draws its noise from keys[b] alone.

    Args:
      keys: one key a sample, [B]; only the SDE draws from them.
      x: the state at `start`.
      start, end: times, traced or not. An ODE runs either way; the SDE towards less noise and from a finite log-SNR.
      rtol, atol: tolerances of a step, in units of u. Noise makes the SDE's steps far smaller than the ODE's for the
        same tolerances.
      max_steps: accepted and rejected. A sample that needs more is an error; of traced values, it is all NaN, and an
        error within `checked`.

    There is no step whose state guidance could change: CFG++ does what CFG does. Raises ValueError for an unknown
    method, wrong shapes, too many steps, or an SDE from zero SNR.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if keys.ndim != 1 or keys.shape != x.shape[:1]:
        raise ValueError(f"keys must have shape [B], one key a sample, got {keys.shape} for x of shape {x.shape}")
    require((rtol > 0) & (atol > 0), f"rtol and atol must be positive, got {rtol} and {atol}")
    start, end = jnp.asarray(start, x.dtype), jnp.asarray(end, x.dtype)
    solve = _sde if method == "sde" else _ode
    gains = (0.1, 0.3) if method == "sde" else (0.0, 1.0)  # smoother where each step's error is by chance
    controller = diffrax.PIDController(rtol=rtol, atol=atol, pcoeff=gains[0], icoeff=gains[1])
    solution = jax.vmap(
        lambda key, one: solve(
            key,
            one / _scale(process, start),
            denoise,
            process,
            (start, end),
            solver=METHODS[method](),
            stepsize_controller=controller,
            max_steps=max_steps,
            throw=False,
        )
    )(rng.named(keys, "solver"), x)
    done = diffrax.is_successful(solution.result)
    check(
        done.all(),
        "sample {row} needs more than max_steps steps, or its steps became too small: {steps} were taken",
        row=jnp.argmin(done),
        steps=solution.stats["num_steps"][jnp.argmin(done)],
    )
    last = jnp.asarray(solution.ys)[:, 0] * _scale(process, end)
    last = jnp.where(done.reshape(-1, *[1] * (x.ndim - 1)), last, jnp.nan)
    steps = jnp.asarray(solution.stats["num_steps"])
    return Solved(last, steps, _evaluations(method, steps))


def sample_adaptive(
    keys: Key,
    denoise: Denoiser,
    process: Process,
    shape: tuple[int, ...],
    *,
    method: Method = "tsit5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
    dtype=jnp.float32,
) -> Solved:
    """Samples [B, *shape]: the prior's draw, taken over the process's span, and the data predicted at its end."""
    if keys.ndim != 1:
        raise ValueError(f"keys must have shape [B], one key a sample, got {keys.shape}")
    x = jax.vmap(lambda key: process.prior(key, shape, dtype))(rng.named(keys, "prior"))
    end, start = process.time_span
    solved = integrate_adaptive(
        keys, x, denoise, process, start, end, method=method, rtol=rtol, atol=atol, max_steps=max_steps
    )
    x0 = evaluate(denoise, process, solved.x, jnp.asarray(end, dtype))[1].x0
    return solved._replace(x=x0, nfe=None if solved.nfe is None else solved.nfe + 1)


def _evaluations(method: Method, steps: Array) -> Array | None:
    """Dopri8 and Tsit5 begin a step with the last evaluation of the one before."""
    if method == "kvaerno5":
        return None
    return {"tsit5": 6 * steps + 1, "dopri8": 13 * steps + 1, "sde": 2 * steps}[method]


def _scale(process: Process, t: Array) -> Array:
    return jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)


def _predicted(denoise: Denoiser, process: Process, u: Array, t: Array) -> tuple[Array, Array]:
    """x0 and eps for one sample."""
    _, prediction = evaluate(denoise, process, (_scale(process, t) * u)[None], t)
    return prediction.x0[0], prediction.eps[0]


def _inside(ends: tuple[Array, Array]) -> Callable[[Array], Array]:
    """Keeps what rounding has moved out between the ends."""
    return lambda t: jnp.clip(t, jnp.minimum(*ends), jnp.maximum(*ends))


def _ode(key: Key, u: Array, denoise: Denoiser, process: Process, ends: tuple[Array, Array], **options):
    first, last = (jnp.arctan2(process.sigma(t), process.alpha(t)) for t in ends)
    inside = _inside(ends)

    def slope(angle: Any, u: Array, _) -> Array:
        angle = jnp.asarray(angle, u.dtype)
        # The cosine of a quarter turn may round to less than zero.
        cos, sin = jnp.maximum(jnp.cos(angle), jnp.finfo(u.dtype).tiny), jnp.sin(angle)
        x0, eps = _predicted(denoise, process, u, inside(process.time(2 * (jnp.log(cos) - jnp.log(sin)))))
        return cos * eps - sin * x0

    return diffrax.diffeqsolve(diffrax.ODETerm(slope), t0=first, t1=last, dt0=(last - first) / 100, y0=u, **options)


def _sde(key: Key, u: Array, denoise: Denoiser, process: Process, ends: tuple[Array, Array], **options):
    first, last = (process.log_snr(t) / 2 for t in ends)
    check(
        jnp.isfinite(first) & (last > first),
        "the SDE needs a finite log-SNR at its start, and less noise at its end, got half log-SNRs {first} and {last}",
        first=first,
        last=last,
    )
    inside = _inside(ends)

    def drift(at: Any, u: Array, _) -> Array:
        at = jnp.asarray(at, u.dtype)
        x0, eps = _predicted(denoise, process, u, inside(process.time(2 * at)))
        cos, sin = jnp.sqrt(jax.nn.sigmoid(2 * at)), jnp.sqrt(jax.nn.sigmoid(-2 * at))
        return sin * cos * (sin * x0 - cos * eps) - sin * eps

    def diffusion(at: Any, u: Array, _) -> lineax.DiagonalLinearOperator:
        return lineax.DiagonalLinearOperator(jnp.full_like(u, jnp.sqrt(2 * jax.nn.sigmoid(-2 * at)).astype(u.dtype)))

    like = jax.ShapeDtypeStruct(u.shape, u.dtype)
    path = diffrax.VirtualBrownianTree(first, last, (last - first) * 1e-5, like, key, diffrax.SpaceTimeLevyArea)
    terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path))
    return diffrax.diffeqsolve(terms, t0=first, t1=last, dt0=(last - first) / 100, y0=u, **options)
