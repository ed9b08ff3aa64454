"""Noise levels and timesteps of published schedules, in the precision of their publication.

Betas, and their products as far as they are kept, are float32 there; where alpha is small, that shows. Rounding to
whole timesteps happens as it does there, too: it decides what the network is told.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Fields = Mapping[str, Any]
F32 = np.float32


def betas_of(fields: Fields) -> np.ndarray:
    """beta [T], float32."""
    if fields["trained_betas"] is not None:
        return np.asarray(fields["trained_betas"], F32)
    total, start, end = fields["num_train_timesteps"], fields["beta_start"], fields["beta_end"]
    match fields["beta_schedule"]:
        case "linear":
            return np.linspace(start, end, total).astype(F32)
        case "scaled_linear":
            return np.linspace(start**0.5, end**0.5, total).astype(F32) ** 2
        case "sigmoid":
            return (F32(1) / (1 + np.exp(-np.linspace(-6, 6, total).astype(F32)))) * F32(end - start) + F32(start)
        case "squaredcos_cap_v2":
            kept = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        case _:  # "exp"
            kept = lambda t: math.exp(-12.0 * t)
    return np.array([min(1 - kept((i + 1) / total) / kept(i / total), 0.999) for i in range(total)], F32)


def _products(alphas: np.ndarray) -> np.ndarray:
    return np.cumprod(alphas.astype(np.float64)).astype(F32)


def to_zero_snr(kept: np.ndarray) -> np.ndarray:
    """alpha^2 [T] with alpha shifted and scaled so that the last is zero (arXiv:2305.08891, algorithm 1)."""
    alphas = np.sqrt(kept)
    first, last = alphas[0], alphas[-1]
    return ((alphas - last) * (first / (first - last))) ** 2


def alphas_cumprod(fields: Fields, *, least: float | None = None) -> np.ndarray:
    """alpha^2 [T], float32 values as float64; with zero terminal SNR the last is `least` where it is given."""
    kept = _products(F32(1) - betas_of(fields))
    if fields.get("rescale_betas_zero_snr"):
        rescaled = to_zero_snr(kept)
        alphas = np.append(rescaled[:1], rescaled[1:] / rescaled[:-1])
        kept = _products(F32(1) - (F32(1) - alphas))  # betas in between
        kept[-1] = kept[-1] if least is None else least
    return kept.astype(np.float64)


def sigmas_of(kept: np.ndarray) -> np.ndarray:
    """sigma / alpha [T], float32 as they are kept."""
    kept = kept.astype(F32)
    return ((F32(1) - kept) / kept) ** F32(0.5)


def spaced(spacing: str, total: int, n: int, offset: int, *, extra: int = 0, last: int | None = None) -> np.ndarray:
    """Timesteps [n], decreasing, not rounded for "linspace". `extra`: that many more are counted and left out at the
    end; `last`: as if the chain of `total` ended before that timestep, which leaves fewer of "trailing"."""
    last = total if last is None else last
    most = total if spacing == "trailing" else total - extra
    if not 1 <= n <= most:
        raise ValueError(f"steps must lie between 1 and the chain's {most}, got {n}")
    if spacing == "linspace":
        return np.linspace(0, last - 1, n + extra)[::-1][:n]
    if spacing == "leading":
        return (np.arange(n + extra)[::-1] * (last // (n + extra)))[:n].astype(np.float64) + offset
    steps = np.arange(last, 0, -total / n).round() - 1
    if len(steps) > n:
        raise ValueError(
            f"trailing spacing of {n} steps is published with one more, at timestep -1; take another number"
        )
    return steps


def to_timesteps(sigmas: np.ndarray, log_sigmas: np.ndarray) -> np.ndarray:
    """Timesteps with fractions of levels between those of the chain [T], whose logarithms increase."""
    at = np.log(np.maximum(sigmas, 1e-10))
    return np.interp(at, log_sigmas, np.arange(len(log_sigmas)))


def karras_sigmas(high: float, low: float, n: int, rho: float = 7.0) -> np.ndarray:
    """arXiv:2206.00364, eq. 5."""
    ramp = np.linspace(0, 1, n)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def exponential_sigmas(high: float, low: float, n: int) -> np.ndarray:
    return np.exp(np.linspace(math.log(high), math.log(low), n))


def beta_sigmas(high: float, low: float, n: int) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6) (arXiv:2407.12173)."""
    from scipy.special import betaincinv

    return low + betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, n)) * (high - low)


def respaced(fields: Fields, high: float, low: float, n: int) -> np.ndarray | None:
    """The levels that replace those of the spacing, between the given ends or the config's own; None where none do."""
    high = high if fields.get("sigma_max") is None else fields["sigma_max"]
    low = low if fields.get("sigma_min") is None else fields["sigma_min"]
    kinds = {"karras": karras_sigmas, "exponential": exponential_sigmas, "beta": beta_sigmas}
    chosen = [make for name, make in kinds.items() if fields.get(f"use_{name}_sigmas")]
    return chosen[0](high, low, n) if chosen else None


def shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """shift sigma / (1 + (shift - 1) sigma): the flow shift of arXiv:2403.03206."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def stretched(sigmas: np.ndarray, terminal: float) -> np.ndarray:
    """The same between 1 and a last level of `terminal`."""
    return 1 - (1 - sigmas) * (1 - terminal) / (1 - sigmas[-1])


def shift_of(fields: Fields, tokens: int | None) -> float:
    """The shift of a schedule that depends on the number of tokens of the picture: linear in its logarithm for
    "exponential", in itself for "linear". Raises ValueError where it is not given."""
    if tokens is None:
        raise ValueError("use_dynamic_shifting: the schedule depends on the picture's size; give its number of tokens")
    few, many = fields.get("base_image_seq_len", 256), fields.get("max_image_seq_len", 4096)
    low, high = fields.get("base_shift", 0.5), fields.get("max_shift", 1.15)
    value = low + (tokens - few) * (high - low) / (many - few)
    return value if fields.get("time_shift_type") == "linear" else math.exp(value)
