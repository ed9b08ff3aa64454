"""Averages of the parameters over training.

Two kinds. An exponential one whose horizon grows until it reaches `decay`, from which samples are drawn; from `swa` on
it is the plain mean instead (SWA, 1803.05407). And power-function profiles (Karras et al., 2312.02696): with weights

    w(s) = (g + 1) s^g / n^(g + 1)

over updates s up to n, whose width relative to n, sigma_rel = sqrt((g + 1) / ((g + 2)^2 (g + 3))), stays the same as
training goes on. From snapshots of two of them any other profile is put together after training: what is wanted is the
combination of the snapshots whose weights are nearest to it in the mean square over updates.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.typing import Array, Params

WIDEST = 0.28
"""Profiles are wider than flat ones from 0.2887 on, where g is 0."""


def update(average: Params, params: Params, step: Array, decay: float, swa: int | None = None) -> Params:
    """The average after update n = `step` (0 for the first): the past weighs min(decay, (1 + n) / (10 + n)), and from
    update number `swa` on m / (m + 1) after m of them."""
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step)).astype(jnp.float32)
    if swa is not None:
        before = (step - (swa - 1)).astype(jnp.float32)  # updates of the mean so far, from 0 on
        keep = jnp.where(before >= 0, before / (before + 1), keep)
    return _mixed(average, params, keep)


def exponent(sigma_rel: float) -> float:
    """g of the profile of this relative width. Raises ValueError for one that is not in (0, WIDEST]."""
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel must be above 0 and at most {WIDEST}; got {sigma_rel}")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def update_profile(average: Params, params: Params, step: Array, sigma_rel: float) -> Params:
    """The profile's average after update n = `step` (0 for the first), which is `params` after the first."""
    keep = ((step / (step + 1.0)) ** (exponent(sigma_rel) + 1)).astype(jnp.float32)
    return _mixed(average, params, keep)


def _mixed(average: Params, params: Params, keep: Array) -> Params:
    return jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, average, params)


def combination(snapshots: Sequence[tuple[int, float]], step: int, sigma_rel: float) -> np.ndarray:
    """The weights, float64, of snapshots (updates, sigma_rel) whose sum is nearest to the profile `sigma_rel` over the
    updates up to `step`.

    Raises ValueError where there is no snapshot up to `step`, or for an impossible width.
    """
    if not snapshots or max(at for at, _ in snapshots) > step:
        raise ValueError(f"snapshots: {list(snapshots)} are not all of updates up to {step}")
    ends = np.array([at for at, _ in snapshots] + [step], np.float64) / step
    g = np.array([exponent(width) for _, width in snapshots] + [exponent(sigma_rel)])
    # Inner products of w_i and w_j over the updates that both have, in closed form.
    total = g[:, None] + g[None, :] + 1
    shorter = np.minimum(ends[:, None], ends[None, :])
    scale = (g + 1) / ends ** (g + 1)
    products = scale[:, None] * scale[None, :] * shorter**total / total
    # Weights of averages are 1 in all, as those of what is wanted are: a multiplier sees to it.
    count = len(snapshots)
    bordered = np.ones((count + 1, count + 1))
    bordered[:count, :count], bordered[count, count] = products[:-1, :-1], 0
    return np.linalg.lstsq(bordered, np.append(products[:-1, -1], 1.0), rcond=1e-12)[0][:count]
