"""Distances between two sets of feature vectors, in float64.

Frechet distance of the fitted Gaussians, |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) (Heusel et al. 2017,
arXiv:1706.08500).
MMD^2 with the kernel (x.y / d + 1)^3, unbiased (the kernel distance of Binkowski et al. 2018, arXiv:1801.01401).
"""

import numpy as np


def _check(a: np.ndarray, b: np.ndarray) -> None:
    for name, value in (("a", a), ("b", b)):
        if value.ndim != 2 or len(value) < 2 or value.shape[1] != a.shape[1]:
            raise ValueError(f"{name} must have shape [n, {a.shape[-1]}] with n >= 2, got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} has values that are not finite")


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of features a [n, D] and b [m, D]. It depends on n and m: compare equal ones only."""
    _check(a, b)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (C1 C2)^1/2 is the sum of the singular values of L1^T L2 for any square roots L L^T = C.
    overlap = np.linalg.svd(_root(first).T @ _root(second), compute_uv=False).sum()
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(first) + np.trace(second) - 2 * overlap)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    return vectors * np.sqrt(np.clip(values, 0, None))


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased MMD^2 of features a [n, D] and b [m, D]; its mean is zero, and it may be negative, for equal sources."""
    _check(a, b)
    kernel = lambda x, y: (x @ y.T / a.shape[1] + 1) ** 3
    inside = lambda x: (kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1))
    return float(inside(a) + inside(b) - 2 * kernel(a, b).mean())
