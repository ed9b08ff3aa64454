"""The feature space "random-conv-64": what a fixed, untrained convolutional network sees in an image.

Random networks keep what natural statistics keep (edges, colours, their layout) and need no download; distances in them
follow those in trained ones closely enough to rank models on one data set (Naeem et al. 2020, arXiv:2002.09797, use
them where trained features do not fit). They are no FID: never compare them across feature spaces or image sizes.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.typing import Array

NAME = "random-conv-64"
_WIDTHS = (3, 16, 32, 32)
_CHUNK = 64


def _kernels() -> list[Array]:
    keys = jax.random.split(jax.random.key(20_02_09797), len(_WIDTHS) - 1)
    shapes = [(3, 3, a, b) for a, b in itertools.pairwise(_WIDTHS)]
    return [
        jax.random.normal(key, shape) * np.sqrt(2 / np.prod(shape[:3])) for key, shape in zip(keys, shapes, strict=True)
    ]


@jax.jit
def _features(images: Array) -> Array:
    x = images
    for kernel in _kernels():
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dimensions))
    return jnp.concatenate([x.mean((1, 2)), x.std((1, 2))], axis=-1)


def features(images: np.ndarray) -> np.ndarray:
    """Images [n, H, W, 3] in [-1, 1] to float64 [n, 64]: mean and deviation over positions of 32 channels."""
    missing = -len(images) % _CHUNK
    padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    parts = [np.asarray(_features(padded[i : i + _CHUNK]), np.float64) for i in range(0, len(padded), _CHUNK)]
    return np.concatenate(parts)[: len(images)]
