"""What the pictures of a run show: which conditions its samples are drawn under, and how samples become images.

Samples on images are images; those of latents go through the autoencoder that made the latents. A run with captions
shows those of its first rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jdiff.data import Latents, Source, ordered
from jdiff.pictures import Decode
from jdiff.pipelines import image_coder, prompt_encoder
from jdiff.train.trainer import Trainer
from jdiff.typing import Array

_AT_ONCE = 8
_COMPARED = 2**28  # values of training data that samples are compared with, a gigabyte of float32

Conditions = dict[str, np.ndarray]


class Shown(NamedTuple):
    """How a run's samples are drawn and shown."""

    null: Conditions
    """What stands for no caption, an array each by name; empty without captions."""
    cond: Callable[[int], Conditions | None]
    """Those of n samples."""
    decode: Decode
    real: Callable[[], np.ndarray]
    """Training data to compare samples with, of the shape of a sample: all of it, or its first gigabyte."""
    edge: int
    """Of a square image, in pixels."""


def shown(trainer: Trainer, source: Source) -> Shown:
    """How the run on `source` shows its samples. Raises ValueError where data.pipeline is not what made the latents."""
    rows = range(min(len(source), _COMPARED // int(np.prod(trainer.shape))))
    if not isinstance(trainer.experiment.data, Latents):
        compared = lambda: np.concatenate([batch["image"] for batch in ordered(source, 256, len(rows))])
        return Shown({}, lambda n: None, lambda samples: samples, compared, trainer.experiment.data.size)
    latents: Any = source
    told = lambda caption: {name: caption[name] for name in trainer.conditions}
    examples = [latents[row] for row in range(min(len(source), 64))] if trainer.conditions else []
    cond = lambda n: _stacked([told(examples[i % len(examples)]["caption"]) for i in range(n)]) if examples else None
    null = told(latents.without_caption()) if trainer.conditions else {}
    squares = lambda: (image for row in rows if (image := latents[row]["image"]).shape == trainer.shape)
    decode, edge = decoder(trainer, latents.autoencoder)
    return Shown(null, cond, decode, lambda: np.stack(list(squares())), edge)


def decoder(trainer: Trainer, fingerprint: str | None = None) -> tuple[Decode, int]:
    """What makes images of a run's samples, and the edge of a square one in pixels; with a `fingerprint`, ValueError
    unless the autoencoder has it."""
    data = trainer.experiment.data
    if not isinstance(data, Latents):
        return lambda samples: samples, data.size
    coder = image_coder(data.pipeline)
    if fingerprint not in (None, coder.fingerprint):
        raise ValueError(f"data.pipeline {data.pipeline}: its autoencoder is not the one that made {data.folder}")
    return lambda samples: _in_chunks(coder.decode, samples), data.size * coder.divisor


def prompted(trainer: Trainer, prompts: Sequence[str], edge: int) -> Conditions:
    """The conditions of prompts for square images, as the text encoders of data.pipeline give them. Raises ValueError
    where the run takes no captions, and as the tokenizers do."""
    data = trainer.experiment.data
    if not isinstance(data, Latents) or not trainer.conditions:
        raise ValueError("this run takes no captions, and so no prompts")
    given: dict[str, Any] = dict(prompt_encoder(data.pipeline).encode(prompts))
    given["time_ids"] = np.tile(np.array([edge, edge, 0, 0, edge, edge], np.float32), (len(prompts), 1))
    # In float16, as those of training.
    return {
        name: np.asarray(given[name], np.float32 if name == "time_ids" else np.float16) for name in trainer.conditions
    }


def _stacked(rows: list[Conditions]) -> Conditions:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _in_chunks(decode: Callable[[np.ndarray], Array], samples: np.ndarray) -> np.ndarray:
    parts = []
    for first in range(0, len(samples), _AT_ONCE):
        part = samples[first : first + _AT_ONCE]
        filled = np.concatenate([part, np.zeros((_AT_ONCE - len(part), *part.shape[1:]), part.dtype)])
        parts.append(np.asarray(decode(filled))[: len(part)])
    return np.concatenate(parts)
