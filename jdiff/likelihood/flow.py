"""Log-density by the probability-flow ODE (Song et al. 2021, arXiv:2011.13456, appendix D.2), for any process.

With s = sqrt(alpha^2 + sigma^2), the angle a = atan2(sigma, alpha) and y = x / s, dx/dt = alpha' x0 + sigma' eps is

    dy/da = cos(a) eps - sin(a) x0,

whatever the process (the angle is that of arXiv:2410.11081). It is bounded at both ends, at a zero signal-to-noise
ratio, too, and no slope of alpha or sigma is needed. By the instantaneous change of variables (arXiv:1806.07366),

    log p_t(x_t) = log p_u(x_u) + D log(s_u / s_t) + integral from a_t to a_u of div_y(dy/da) da.

The divergence is exact (D products with the Jacobian) or Hutchinson's estimate v . J v with E v v^T = I (FFJORD,
arXiv:1810.01367), whose probes v are the same through the whole solve: each probe is an unbiased log-density.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, final

import diffrax
import jax
import jax.numpy as jnp

from jdiff import rng
from jdiff.processes import Process
from jdiff.processes.base import require
from jdiff.pytree import pytree
from jdiff.typing import Array, Denoiser, Key, Time


@final
@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Steps of Tsitouras' 5(4) method from `start` to `end`, as long as the tolerances allow.

    The batch is solved as one, each step accepted for its worst sample. A solve that needs more than `max_steps` is a
    RuntimeError when it runs. Reverse-mode gradients alone (`jax.grad`).
    """

    start: Time
    """The time of x."""
    end: Time
    """The time to go to."""
    rtol: float | Array = 1e-5
    """Allowed error of a step, relative to y and to the change in log-density."""
    atol: float | Array = 1e-5
    """The same, absolute."""
    max_steps: int = dataclasses.field(default=4096, metadata={"static": True})
    """Steps after which to give up, rejected ones included."""


class Transport(NamedTuple):
    """Where the flow takes x, and how its log-density changes on the way."""

    x: Array  # [B, ...] at the last time: the latent code of data, or the data of a code
    change: Array  # [B] log p at the first time and there, less log p at the last time and x
    standard_error: Array  # [B] of the change, over probes: zero for the exact divergence, NaN for a single probe
    nfe: Array | int  # evaluations of the denoiser (of B); products with its Jacobian are not counted


class LogDensity(NamedTuple):
    """log p of x, and what `Transport` says."""

    log_density: Array  # [B] nats
    standard_error: Array  # [B] nats
    latent: Array  # [B, ...] x at the last time
    nfe: Array | int


def grid(process: Process, n: int, knee: float = 0.1, dtype=jnp.float32) -> Array:
    """Increasing times [n] over the process's span, equal steps in asinh(angle / knee).

    Below the angle `knee` steps are equal in the angle, above it in its logarithm; `knee` is about the smallest
    scale of the data. Raises ValueError for n < 2 or knee <= 0.
    """
    require(n >= 2, f"a grid needs n >= 2 times, got {n}")
    require(knee > 0, f"knee must be positive, got {knee}")
    ends = jnp.asarray(process.time_span, dtype)
    low, high = jnp.arcsinh(_angle(process, ends) / knee)
    angles = knee * jnp.sinh(jnp.linspace(low, high, n, dtype=dtype))
    return _time(process, angles).at[0].set(ends[0]).at[-1].set(ends[1])


def probes(keys: Key, x: Array, n: int, draw: Callable[..., Array] = jax.random.rademacher) -> Array:
    """n probes a sample [n, B, ...] like x [B, ...], those of row b from keys[b] alone.

    `draw(key, shape, dtype)` is `jax.random.rademacher`, of least variance, or `jax.random.normal`.
    """
    one = lambda key: draw(key, (n, *x.shape[1:]), x.dtype)
    return jnp.moveaxis(jax.vmap(one)(rng.named(keys, "probes")), 0, 1)


def transport(
    x: Array, denoise: Denoiser, process: Process, times: Array | Adaptive, *, probes: Array | None = None
) -> Transport:
    """x [B, ...] taken along the probability-flow ODE, with the change of its log-density.

    Args:
      x: the state at the first time.
      denoise: (x [B, ...], t []) -> Prediction that is consistent with x.
      times: [n] times, n >= 2, increasing (data to code) or decreasing (code to data): n - 1 steps of the classical
        fourth-order Runge-Kutta method, of four evaluations each. Or `Adaptive`.
      probes: [P, B, ...] of Hutchinson's estimate (`probes`); the exact divergence without, in memory of D evaluations.

    Differentiable in everything that `denoise` closes over and in x. Raises ValueError for wrong shapes and times that
    are not monotone.
    """
    _check(x, times, probes)
    start, end = (times.start, times.end) if isinstance(times, Adaptive) else (times[0], times[-1])
    start, end = jnp.asarray(start, x.dtype), jnp.asarray(end, x.dtype)
    first, last = _scale(process, start), _scale(process, end)
    rate = _rate(denoise, process, x, probes)
    state = (x / first, jnp.zeros((1 if probes is None else len(probes), x.shape[0]), x.dtype))
    if isinstance(times, Adaptive):
        (y, changes), nfe = _adaptive(rate, process, state, start, end, times)
    else:
        (y, changes), nfe = _runge_kutta(rate, process, state, jnp.asarray(times, x.dtype))
    size = x[0].size
    change = changes.mean(axis=0) + size * (jnp.log(last) - jnp.log(first))
    count = changes.shape[0]
    spread = jnp.std(jax.lax.stop_gradient(changes), axis=0, ddof=min(count, 2) - 1)
    unknown = probes is not None and count == 1
    error = jnp.full_like(change, jnp.nan) if unknown else spread / jnp.sqrt(jnp.asarray(count, x.dtype))
    return Transport(last * y, change, error, nfe)


def log_density(
    x: Array,
    denoise: Denoiser,
    process: Process,
    times: Array | Adaptive,
    *,
    probes: Array | None = None,
    terminal: Callable[[Array], Array] | None = None,
) -> LogDensity:
    """log p_t(x) in nats, [B], for x [B, ...] at the first of `times`: `transport` to the last, and the density there.

    `terminal` is the log-density (x [B, ...]) -> [B] at the last time, by default that of the process's prior,
    N(0, sigma^2 I), which differs from the true one by what is left of the data. At t_min the density is that of data
    with t_min's noise. Raises what `transport` does, and ValueError for a terminal density of another shape.
    """
    moved = transport(x, denoise, process, times, probes=probes)
    end = times.end if isinstance(times, Adaptive) else times[-1]
    last = _normal(moved.x, process.sigma(jnp.asarray(end, x.dtype))) if terminal is None else terminal(moved.x)
    if last.shape != x.shape[:1]:
        raise ValueError(f"terminal must return shape {x.shape[:1]}, one log-density a sample, got {last.shape}")
    return LogDensity(last + moved.change, moved.standard_error, moved.x, moved.nfe)


def _check(x: Array, times: Array | Adaptive, probes: Array | None) -> None:
    if x.ndim < 2:
        raise ValueError(f"x must have shape [B, ...] with at least one axis of values, got {x.shape}")
    if probes is not None and (probes.shape[1:] != x.shape or not len(probes)):
        raise ValueError(f"probes must have shape {('P', *x.shape)} with P >= 1, got {probes.shape}")
    if isinstance(times, Adaptive):
        return
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times must have shape [n] with n >= 2, got {times.shape}")
    steps = jnp.diff(times)
    require((steps > 0).all() | (steps < 0).all(), f"times must all increase or all decrease, got {times}")


def _normal(x: Array, std: Array) -> Array:
    """log N(x; 0, std^2 I), [B]."""
    return jnp.sum(jax.scipy.stats.norm.logpdf(x, scale=std), axis=tuple(range(1, x.ndim)))


def _angle(process: Process, t: Array) -> Array:
    return jnp.arctan2(process.sigma(t), process.alpha(t))


def _time(process: Process, angle: Array) -> Array:
    """The time of an angle; that of a quarter turn is at a log-SNR so small that nothing is left of the data."""
    least = jnp.finfo(angle.dtype).tiny
    return process.time(2 * (jnp.log(jnp.maximum(jnp.cos(angle), least)) - jnp.log(jnp.sin(angle))))


def _scale(process: Process, t: Array) -> Array:
    return jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)


_Rate = Callable[[Array, Array], tuple[Array, Array]]
_State = tuple[Array, Array]


def _rate(denoise: Denoiser, process: Process, x: Array, probes: Array | None) -> _Rate:
    """(t [], y [B, ...]) -> dy/da and its divergences by probe, [P, B], or the exact one, [1, B]."""
    size = x[0].size
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    vectors = jnp.broadcast_to(basis, (size, *x.shape)) if probes is None else probes

    def rate(t: Array, y: Array) -> tuple[Array, Array]:
        scale = _scale(process, t)

        def field(y: Array) -> Array:
            prediction = denoise(scale * y, t)
            if prediction.x0.shape != y.shape:
                raise ValueError(
                    f"the denoiser must predict the shape of its input, {y.shape}, got {prediction.x0.shape}"
                )
            return (process.alpha(t) * prediction.eps - process.sigma(t) * prediction.x0) / scale

        slope, push = jax.linearize(field, y)
        products = jax.vmap(lambda v: jnp.sum(v * push(v), axis=tuple(range(1, v.ndim))))(vectors)
        return slope, products.sum(axis=0, keepdims=True) if probes is None else products

    return rate


def _runge_kutta(rate: _Rate, process: Process, state: _State, times: Array) -> tuple[_State, int]:
    """Classical Runge-Kutta steps in the angle. Each is recomputed on the way back, for memory."""
    angles = _angle(process, times)
    middle = _time(process, (angles[:-1] + angles[1:]) / 2)

    reach = jnp.asarray([0, 1 / 2, 1 / 2, 1], times.dtype)
    weight = jnp.asarray([1 / 6, 1 / 3, 1 / 3, 1 / 6], times.dtype)

    @jax.checkpoint
    def step(state: _State, plan: tuple[Array, ...]) -> tuple[_State, tuple[()]]:
        t, half, s, width = plan

        def stage(carry: tuple[_State, Array], plan: tuple[Array, ...]) -> tuple[tuple[_State, Array], tuple[()]]:
            total, slope = carry
            t, reach, weight = plan
            rates = rate(t, state[0] + width * reach * slope)
            return (jax.tree.map(lambda z, r: z + width * weight * r, total, rates), rates[0]), ()

        # A loop over the stages, so that the network is compiled once.
        times = jnp.stack([t, half, half, s])
        return jax.lax.scan(stage, (state, jnp.zeros_like(state[0])), (times, reach, weight))[0][0], ()

    state, _ = jax.lax.scan(step, state, (times[:-1], middle, times[1:], jnp.diff(angles)))
    return state, 4 * (len(times) - 1)


def _worst(error: _State) -> Array:
    """The greatest root mean square over the samples, of a step's scaled error in y and in the changes."""
    y, changes = error
    mean_square = jnp.maximum(jnp.mean(y**2, axis=tuple(range(1, y.ndim))), jnp.max(changes**2, axis=0))
    return jnp.sqrt(jnp.max(mean_square))


def _adaptive(
    rate: _Rate, process: Process, state: _State, start: Array, end: Array, options: Adaptive
) -> tuple[_State, Array]:
    first, last = _angle(process, start), _angle(process, end)
    time = lambda angle: jnp.clip(_time(process, jnp.asarray(angle)), jnp.minimum(start, end), jnp.maximum(start, end))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda angle, state, _: rate(time(angle), state[0])),
        diffrax.Tsit5(),
        first,
        last,
        (last - first) / 100,
        state,
        stepsize_controller=diffrax.PIDController(rtol=options.rtol, atol=options.atol, norm=_worst),
        max_steps=options.max_steps,
    )
    # Tsit5's last stage is the next step's first.
    return jax.tree.map(lambda value: value[-1], solution.ys), 6 * solution.stats["num_steps"] + 1
