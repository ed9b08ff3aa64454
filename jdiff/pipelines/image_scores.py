"""Scores of pictures by CLIP (Radford et al., 2103.00020), for `jdiff data score`.

- clip: the cosine of the embeddings of picture and caption (Hessel et al., 2104.08718, without their factor). Of a
  caption that is longer than the encoder takes, its beginning counts.
- aesthetic, nsfw, watermark: w.x + b of the embedding x of the picture, scaled to length 1. Of nsfw and watermark it is
  the log-odds, as LAION's linear probes of CLIP (2210.08402) have them.

The picture's shorter side becomes the encoder's size, bicubic, and the middle is taken, as OpenAI's CLIP does.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jdiff.interop import from_pretrained
from jdiff.interop.pretrained import located
from jdiff.interop.tensors import open_file
from jdiff.json_files import read_object
from jdiff.models import CLIPTextWithProjection, CLIPVisionWithProjection
from jdiff.text import load_tokenizer
from jdiff.typing import Array

HEADS = ("aesthetic", "nsfw", "watermark")
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that OpenAI's CLIP was trained on, in [0, 1]; preprocessor_config.json may say others."""


class Pictures:
    """Pictures to embeddings of length 1, by CLIP's encoder in a folder as transformers writes it.

    Raises ValueError or FileNotFoundError for a folder that holds none."""

    def __init__(self, folder: str | Path):
        self.folder = located(folder)
        if not (self.folder / "config.json").exists():
            raise ValueError(f"{folder} holds no config.json: it is no folder of a CLIP with its weights")
        self.config, network, self._params, _ = from_pretrained(self.folder, expected=CLIPVisionWithProjection)
        self._apply = jax.jit(lambda params, pixels: _unit(network.apply(params, pixels).image_embeds))
        path = self.folder / "preprocessor_config.json"
        settings = read_object(path) if path.exists() else {}
        self._mean = _colours(path, "image_mean", settings.get("image_mean", _MEAN))
        self._std = _colours(path, "image_std", settings.get("image_std", _STD))
        if not (self._std > 0).all():
            raise ValueError(f"{path}: image_std must be above 0, got {settings['image_std']!r}")

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """float32 [N, projection_dim]."""
        pixels = np.stack([self._pixels(image) for image in images])
        return np.asarray(_padded(partial(self._apply, self._params), pixels))

    def _pixels(self, image: Image.Image) -> np.ndarray:
        size, shorter = self.config.image_size, min(image.size)
        width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
        return (np.asarray(image, np.float32) / 255 - self._mean) / self._std


class ClipScorer:
    """The column `clip`, and the vectors `embedding` where they are asked for.

    Raises ValueError for a folder that is no CLIP with both encoders and a tokenizer."""

    name = "clip"

    def __init__(self, folder: str | Path, *, embeddings: bool = False):
        self._pictures, self._embeddings = Pictures(folder), embeddings
        where = self._pictures.folder
        config, network, self._params, _ = from_pretrained(where, expected=CLIPTextWithProjection)
        self._tokenizer = load_tokenizer(where, limit=config.max_position_embeddings)
        self._apply = jax.jit(lambda params, ids: _unit(network.apply(params, ids).text_embeds))
        self.identity = f"{_digest(where)}, embeddings {embeddings}"
        self.at_least = 2 * self._pictures.config.image_size

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> dict[str, np.ndarray]:
        seen = self._pictures(images)
        ids = self._tokenizer(captions, long="chunk").ids[:, 0]
        said = _padded(partial(self._apply, self._params), ids)
        columns = {"clip": (seen * said).sum(-1)}
        return columns | {"embedding": seen} if self._embeddings else columns


class HeadScorer:
    """The column `name`, one of HEADS: a number of `aesthetic`; whether its probability is over a half of the others,
    whose probability is another column. Raises ValueError for a file that holds no `weight` and `bias` that fit."""

    def __init__(self, name: str, folder: str | Path, head: Path):
        if name not in HEADS:
            raise ValueError(f"name must be one of {', '.join(HEADS)}; got {name!r}")
        self.name, self._pictures = name, Pictures(folder)
        width = self._pictures.config.projection_dim
        with open_file(head) as tensors:
            shapes = {key: entry.shape for key, entry in tensors.entries.items()}
            if shapes not in [{"weight": (1, width), "bias": (1,)}, {"weight": (width,), "bias": (1,)}]:
                raise ValueError(
                    f"head {head} must hold weight (1, {width}) and bias (1,), and nothing else; got {shapes}"
                )
            self._weight = tensors.read("weight").astype(np.float32).reshape(-1)
            self._bias = float(tensors.read("bias").astype(np.float32)[0])
        self.identity = f"{_digest(self._pictures.folder)}, {hashlib.sha256(head.read_bytes()).hexdigest()}"
        self.at_least = 2 * self._pictures.config.image_size

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> dict[str, np.ndarray]:
        values = self._pictures(images) @ self._weight + self._bias
        if self.name == "aesthetic":
            return {"aesthetic": values}
        return {self.name: values > 0, f"{self.name}_probability": 1 / (1 + np.exp(-values))}


def _colours(path: Path, name: str, values: Any) -> np.ndarray:
    """float32 [3]. Raises ValueError for what is not three numbers."""
    number = lambda value: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(number, values)):
        raise ValueError(f"{path}: {name} must be three numbers, got {values!r}")
    return np.array(values, np.float32)


def _unit(vectors: Array) -> Array:
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def _padded(apply: Any, rows: np.ndarray) -> np.ndarray:
    """`apply` in powers of two of rows, so that few sizes are compiled."""
    wanted = 1 << (len(rows) - 1).bit_length()
    missing = np.zeros((wanted - len(rows), *rows.shape[1:]), rows.dtype)
    return np.asarray(apply(np.concatenate([rows, missing])))[: len(rows)]


def _digest(folder: Path) -> str:
    """Of all files of a folder that say what its networks and tokenizer compute."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
