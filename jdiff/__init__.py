"""Diffusion models in JAX: processes, predictions, solvers, and everything needed to train and sample with them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jdiff.pipelines import ClassToImage as ClassToImage
    from jdiff.pipelines import TextToImage as TextToImage

__version__ = "0.1.0"
__all__ = ["ClassToImage", "TextToImage", "__version__"]


def __getattr__(name: str) -> Any:
    """Pipelines are imported when they are asked for: jdiff alone loads neither JAX nor Flax."""
    if name in ("ClassToImage", "TextToImage"):
        from jdiff import pipelines

        return getattr(pipelines, name)
    raise AttributeError(f"module 'jdiff' has no attribute {name!r}")
