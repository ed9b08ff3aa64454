"""Distributions made of others: what inpainting and composition should reach.

Inpainting: given that some coordinates of the data are v, component k of a mixture is a Gaussian again, with

    mean_u + C_uk C_kk^-1 (v - mean_k)   and   C_uu - C_uk C_kk^-1 C_ku

in the other coordinates (u), weighed by N(v; mean_k, C_kk).

Composition: the product of powers of Gaussians has precision P = sum_i w_i C_i^-1 and mean P^-1 sum_i w_i C_i^-1 m_i.

What is exact about a composition. At any t, the weighted sum of scores is the score of prod_i p_{i,t}(x)^{w_i}, the
product of the noised densities; for Gaussians that is `product` of the noised Gaussians. It is not the score of the
noised product, except at t = 0. So a sampler that follows a sum of scores does not in general draw from the
product of the data's densities (Du et al. 2023, arXiv:2302.11552); the same holds for classifier-free guidance.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.oracles.mixture import Mixture, gaussian, mixture
from jdiff.processes.base import require
from jdiff.typing import Array


def conditioned(target: Mixture, known: Sequence[int], values: Array) -> Mixture:
    """The mixture given that the data's coordinates `known` (m different indices) are `values` [m].

    It lives in the same D dimensions, without variance along the known coordinates, so its prediction is the exact
    E[x0 | x_t, known] for x_t with its known coordinates noised like the others. Raises ValueError for indices outside
    the data or repeated, or values of another shape.
    """
    d, values = target.means.shape[1], jnp.asarray(values)
    index = np.asarray(known, int)
    if len(set(index.tolist())) != len(index) or not np.isin(index, np.arange(d)).all():
        raise ValueError(f"known must hold different indices in 0..{d - 1}, got {list(known)}")
    if values.shape != index.shape:
        raise ValueError(f"values must have shape {index.shape}, one for each known coordinate, got {values.shape}")

    def component(mean: Array, covariance: Array) -> tuple[Array, Array, Array]:
        seen = covariance[index][:, index]
        gain = jnp.linalg.solve(seen, covariance[index]).T  # [D, m]: the identity along the known coordinates
        surprise = values - mean[index]
        log_evidence = jnp.asarray(jax.scipy.stats.multivariate_normal.logpdf(values, mean[index], seen))
        rest = covariance - gain @ covariance[index]
        rest = rest.at[index].set(0).at[:, index].set(0)
        return log_evidence, (mean + gain @ surprise).at[index].set(values), (rest + rest.T) / 2

    log_evidence, means, covariances = jax.vmap(component)(target.means, target.covariances())
    return mixture(jax.nn.softmax(target.log_weights + log_evidence), means, covariances)


def product(targets: Sequence[Mixture], powers: Array) -> Mixture:
    """The Gaussian proportional to prod_i p_i(x)^powers[i], of targets of one component each.

    AND of two conditions is p(x | a) p(x | b) / p(x), powers (1, 1, -1); NOT b is p(x) / p(x | b)^w, and so on. Raises
    ValueError for targets of more components, another number of powers, or a product that cannot be normalized.
    """
    powers = jnp.asarray(powers)
    if powers.shape != (len(targets),) or any(target.means.shape[0] != 1 for target in targets):
        components = [target.means.shape[0] for target in targets]
        raise ValueError(
            f"product needs targets of one component and a power for each, got {components} components and "
            f"powers of shape {powers.shape}"
        )
    inverse = [jnp.linalg.inv(target.covariances()[0]) for target in targets]
    precision = sum(w * p for w, p in zip(powers, inverse, strict=True))
    pull = sum(w * p @ target.means[0] for w, p, target in zip(powers, inverse, targets, strict=True))
    least = jnp.linalg.eigvalsh(precision).min()
    require(least > 0, f"this product cannot be normalized: its precision has the eigenvalue {least}")
    covariance = jnp.linalg.inv(precision)
    return gaussian(covariance @ pull, (covariance + covariance.T) / 2)
