"""How data becomes noise: x_t = alpha(t) x0 + sigma(t) eps, with eps ~ N(0, I).

Everything is derived from alpha, sigma and the log signal-to-noise ratio log_snr(t) = log(alpha^2 / sigma^2):

- the forward SDE dx = f(t) x dt + g(t) dW has f = d log(alpha)/dt and g^2 = -sigma^2 d log_snr/dt
  (Song et al. 2021, arXiv:2011.13456; Kingma et al. 2021, arXiv:2107.00630);
- the transition q(x_t | x_s), s < t, is Gaussian with variance sigma_t^2 (1 - SNR_t / SNR_s);
- the posterior q(x_s | x_t, x0) is Gaussian with variance sigma_s^2 (1 - SNR_t / SNR_s).
"""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jdiff import rng
from jdiff.typing import Array, Key, Time


def match(t: Time, x: Array) -> Array:
    """Gives t of shape [] or [B] trailing axes of length one, so that it broadcasts against x of shape [B, ...]."""
    t = jnp.asarray(t, x.dtype)
    if t.ndim == 0:
        return t
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"a time or weight beside x of shape {x.shape} must have shape () or {x.shape[:1]}, got {t.shape}"
        )
    return t.reshape(t.shape + (1,) * (x.ndim - 1))


def slope(f: Callable[[Array], Array], t: Time) -> Array:
    """df/dt, elementwise, by forward differentiation."""
    t = jnp.asarray(t) * 1.0
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def require(condition: bool | Array, message: str) -> None:
    """Raises ValueError(message) unless the condition holds; a traced value is taken on trust."""
    if not isinstance(condition, Tracer) and not condition:
        raise ValueError(message)


def is_plain(dataclass: object) -> bool:
    """Whether a dataclass holds plain values, as a person made it, rather than what JAX puts into a pytree's leaves."""
    return all(
        is_plain(value) if isinstance(value, Process) else isinstance(value, int | float | str)
        for value in vars(dataclass).values()
    )


class Process(abc.ABC):
    """A Gaussian noising process. Its values are frozen keyword-only dataclasses registered as pytrees.

    Functions of t are elementwise and keep its dtype. A valid t lies inside `time_span`, or is zero, which is the data.
    """

    @property
    @abc.abstractmethod
    def time_span(self) -> tuple[float, float]:
        """(t_min, t_max): the least and the greatest noise that is trained and sampled."""

    @property
    def steps(self) -> int | None:
        """T of a T-step chain, whose own times are 1/T, 2/T, ..., 1; None of a process in continuous time."""
        return None

    @abc.abstractmethod
    def alpha(self, t: Time) -> Array:
        """Scale of the data at time t."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Array:
        """Standard deviation of the noise at time t."""

    @abc.abstractmethod
    def log_snr(self, t: Time) -> Array:
        """log(alpha(t)^2 / sigma(t)^2), accurate near both ends."""

    @abc.abstractmethod
    def time(self, log_snr: Time) -> Array:
        """Inverse of `log_snr`."""

    def noise_label(self, t: Time) -> Array:
        """What a network is told of the noise level unless its parameterization says otherwise, in the shape of t."""
        return jnp.asarray(t)

    def alpha_slope(self, t: Time) -> Array:
        """d alpha / dt."""
        return slope(self.alpha, t)

    def sigma_slope(self, t: Time) -> Array:
        """d sigma / dt."""
        return slope(self.sigma, t)

    def drift(self, x: Array, t: Time) -> Array:
        """f(t) x of the forward SDE, [B, ...]; not finite where alpha is zero (rectified flow at t = 1)."""
        return match(self.alpha_slope(t) / self.alpha(t), x) * x

    def diffusion(self, t: Time) -> Array:
        """g(t) of the forward SDE."""
        return self.sigma(t) * jnp.sqrt(-slope(self.log_snr, t))

    def perturb(self, x0: Array, eps: Array, t: Time) -> Array:
        """x_t [B, ...] for data x0 and noise eps of the same shape."""
        return match(self.alpha(t), x0) * x0 + match(self.sigma(t), x0) * eps

    def transition(self, x: Array, s: Time, t: Time) -> tuple[Array, Array]:
        """Mean [B, ...] and variance (shape of t) of q(x_t | x_s = x), s < t."""
        fresh = -jnp.expm1(self.log_snr(t) - self.log_snr(s))
        return match(self.alpha(t) / self.alpha(s), x) * x, self.sigma(t) ** 2 * fresh

    def posterior(self, x: Array, x0: Array, s: Time, t: Time) -> tuple[Array, Array]:
        """Mean [B, ...] and variance (shape of t) of q(x_s | x_t = x, x0), s < t (arXiv:2006.11239, eq. 7)."""
        keep = (self.alpha(t) / self.alpha(s)) * (self.sigma(s) / self.sigma(t)) ** 2
        fresh = -jnp.expm1(self.log_snr(t) - self.log_snr(s))
        return match(keep, x) * x + match(self.alpha(s) * fresh, x) * x0, self.sigma(s) ** 2 * fresh

    def prior(self, key: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        """One draw of N(0, sigma(t_max)^2 I): the noise of the terminal marginal, with its true variance.

        Where alpha(t_max) is not negligible, the terminal marginal also has alpha(t_max) times the data in it, which
        this leaves out: the prior is that marginal for data at zero.
        """
        return jnp.asarray(self.sigma(self.time_span[1]), dtype) * jax.random.normal(key, shape, dtype)

    def simulate(self, keys: Key, x: Array, times: Array) -> Array:
        """x [B, ...] at times[0], taken to times[-1] by Euler-Maruyama on dx = f x dt + g dW: weak order 1.

        It uses `drift` and `diffusion` alone, so that it is a check of alpha and sigma. `times` [n] increases and
        starts above zero, where g may be infinite; row b draws its noise from keys[b].
        """
        require(
            (times[0] > 0) & (jnp.diff(times) > 0).all(), f"simulate needs increasing times above zero, got {times}"
        )
        keys = rng.named(keys, "simulate")

        def step(x, row):
            number, t, h = row
            noise = rng.normal(rng.numbered(keys, number), x)
            return x + h * self.drift(x, t) + jnp.sqrt(h) * self.diffusion(t) * noise, None

        times = jnp.asarray(times, x.dtype)
        return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], jnp.diff(times)))[0]
