"""The variational bound on -log p(x0), in nats: prior + diffusion + reconstruction.

For times t_1 < ... < t_T (DDPM, arXiv:2006.11239, eq. 5), with q the process's posteriors and p the model's steps:

    prior            KL(q(x_T | x0) || N(0, sigma_T^2)) = SNR_T |x0|^2 / 2
    diffusion        sum over i > 1 of E KL(q(x_s | x_t, x0) || p(x_s | x_t)), t = t_i, s = t_{i-1}
    reconstruction   -E log p(x0 | x_1), with mean x0_hat(x_1) and variance sigma_1^2

p(x_s | x_t) is the posterior at x0_hat, with the variance e^r beta_tilde, r = w log(beta / beta_tilde) and w the
learned fraction (`prediction.py`); a prediction without one has w = 0. Each value's KL is then

    [e^-r (SNR_s - SNR_t) (x0_hat - x0)^2 + e^-r - 1 + r] / 2          (SNR_s - SNR_t = alpha_s^2 fresh^2 / beta_tilde)

As steps shrink, r vanishes and the sum becomes the integral of -d SNR / dt |x0_hat - x0|^2 / 2 over t (VDM,
arXiv:2107.00630): in terms of SNR, the schedule enters through its ends alone.

Reconstruction of 8-bit images is the Gaussian's mass between the neighbours of a level, the outermost levels taking
the tails (arXiv:2006.11239, eq. 13).
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from jdiff import rng
from jdiff.losses.base import snr
from jdiff.losses.times import GridTime, TimeSampling
from jdiff.prediction import Prediction
from jdiff.processes import Process, match
from jdiff.processes.base import require, slope
from jdiff.typing import Array, Denoiser, Key, Time

Decoder = Literal["discretized", "gaussian"]  # images of 256 levels in [-1, 1], or real values


class Bound(NamedTuple):
    """The three terms of each example, [B], in nats."""

    prior: Array
    diffusion: Array
    reconstruction: Array

    @property
    def nats(self) -> Array:
        """Their sum: at least -log p(x0) in expectation over the noise."""
        return self.prior + self.diffusion + self.reconstruction

    def bits_per_dim(self, size: int) -> Array:
        """The sum in bits, for each of the `size` values of an example."""
        return self.nats / (size * math.log(2))


def _total(value: Array) -> Array:
    return jnp.sum(value, axis=tuple(range(1, value.ndim)))


def prior_kl(process: Process, x0: Array, t: Time) -> Array:
    """KL from the prior N(0, sigma_t^2) to x_t given x0 [B, ...], in nats: [B]."""
    return _total(x0**2) * snr(process, t) / 2


def step_kl(process: Process, prediction: Prediction, x0: Array, s: Time, t: Time) -> Array:
    """KL from the model's step t -> s, 0 < s <= t, to the posterior given x0 [B, ...], in nats: [B]."""
    drop = snr(process, s) * -jnp.expm1(process.log_snr(t) - process.log_snr(s))
    square = match(drop, x0) * (prediction.x0 - x0) ** 2
    if prediction.variance is None:
        return _total(square) / 2
    excess = prediction.variance * match(2 * jnp.log(process.sigma(t) / process.sigma(s)), x0)
    return _total(jnp.exp(-excess) * square + jnp.expm1(-excess) + excess) / 2


def discretized_log_likelihood(x0: Array, mean: Array, sigma: Array) -> Array:
    """Log mass that N(mean, sigma^2) gives to the level x0, one of 256 from -1 to 1; elementwise, in nats."""
    half = 1 / 255
    low, high = (x0 - half - mean) / sigma, (x0 + half - mean) / sigma
    # A difference of distribution functions keeps its digits in the lower tail, so the upper one is mirrored.
    mirrored = x0 > mean
    a, b = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    inside = log_ndtr(b) + jnp.log(-jnp.expm1(log_ndtr(a) - log_ndtr(b)))
    return jnp.where(x0 < half - 1, log_ndtr(high), jnp.where(x0 > 1 - half, log_ndtr(-low), inside))


def reconstruction(process: Process, prediction: Prediction, x0: Array, t: Time, decoder: Decoder) -> Array:
    """-log p(x0 | x_t) with variance sigma_t^2, in nats: [B]; of a density where the decoder is "gaussian"."""
    sigma = match(process.sigma(t), x0)
    if decoder == "discretized":
        return -_total(discretized_log_likelihood(x0, prediction.x0, sigma))
    return _total(((x0 - prediction.x0) / sigma) ** 2 + jnp.log(2 * jnp.pi * sigma**2)) / 2


def _decoded(keys: Key, denoise: Denoiser, process: Process, x0: Array, t: Time, decoder: Decoder) -> Array:
    eps = rng.normal(rng.named(keys, "reconstruction"), x0)
    return reconstruction(process, denoise(process.perturb(x0, eps, t), t), x0, t, decoder)


def variational_bound(
    keys: Key, denoise: Denoiser, process: Process, x0: Array, grid: Array, *, decoder: Decoder = "discretized"
) -> Bound:
    """The bound of the chain over `grid`, decreasing times [T], for data x0 [B, ...]: T evaluations.

    Unbiased: one draw of the noise a term, of row b from keys[b] alone. The denoiser's `variance` is the chain's:
    None is beta_tilde; for beta, return ones.
    """
    noise_keys = rng.named(keys, "noise")

    def term(total: Array, step: tuple[Array, Array, Array]) -> tuple[Array, None]:
        number, t, s = step
        eps = rng.normal(rng.numbered(noise_keys, number), x0)
        return total + step_kl(process, denoise(process.perturb(x0, eps, t), t), x0, s, t), None

    steps = jnp.arange(grid.shape[0] - 1), grid[:-1], grid[1:]
    diffusion, _ = jax.lax.scan(term, jnp.zeros(x0.shape[0], x0.dtype), steps)
    return Bound(prior_kl(process, x0, grid[0]), diffusion, _decoded(keys, denoise, process, x0, grid[-1], decoder))


def continuous_bound(
    keys: Key,
    denoise: Denoiser,
    process: Process,
    x0: Array,
    times: TimeSampling,
    n: int,
    *,
    decoder: Decoder = "discretized",
) -> Bound:
    """The bound in continuous time for data x0 [B, ...]: n + 1 evaluations.

    Unbiased: the integral over the span is one over the quantiles u of `times`, whose range is cut into n equal parts
    with one draw in each; row b draws from keys[b] alone. `times` changes the variance only (`LogUniformTime` suits
    most processes), if its quantiles are continuous: raises ValueError for `GridTime`.
    """
    require(not isinstance(times, GridTime), f"times must have a density, got {times}; use UniformTime")
    t_min, t_max = process.time_span
    snr_at = lambda u: snr(process, times.quantile(u, process))
    time_keys, noise_keys = rng.named(keys, "time"), rng.named(keys, "noise")

    def term(total: Array, number: Array) -> tuple[Array, None]:
        offset = jax.vmap(lambda key: jax.random.uniform(key, dtype=x0.dtype))(rng.numbered(time_keys, number))
        u = (number.astype(x0.dtype) + offset) / n
        t = times.quantile(u, process)
        prediction = denoise(process.perturb(x0, rng.normal(rng.numbered(noise_keys, number), x0), t), t)
        return total - slope(snr_at, u) * _total((prediction.x0 - x0) ** 2) / (2 * n), None

    diffusion, _ = jax.lax.scan(term, jnp.zeros(x0.shape[0], x0.dtype), jnp.arange(n))
    return Bound(prior_kl(process, x0, t_max), diffusion, _decoded(keys, denoise, process, x0, t_min, decoder))
