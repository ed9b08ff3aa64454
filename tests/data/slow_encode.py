"""Encodes a view slowly, by encoders that anyone can compute, to be killed: VIEW OUT SECONDS."""

import sys
import time
from pathlib import Path

import numpy as np

from jdiff.data.buckets import Buckets
from jdiff.data.encode import claim, encode_captions, encode_images
from jdiff.data.view import View

SHAPES = Buckets(size=32, step=8)


def moments(images):
    """Means over squares of 8 x 8 pixels, and a standard deviation that says the shape."""
    rows, height, width, _ = images.shape
    mean = images.reshape(rows, height // 8, 8, width // 8, 8, 3).mean((2, 4))
    return mean, np.full_like(mean, height / 100)


def letters(captions):
    """Two arrays a caption."""
    hashed = [sum(ord(letter) * 11**place for place, letter in enumerate(caption)) % 2039 for caption in captions]
    text = np.array([[len(caption), number] for caption, number in zip(captions, hashed, strict=True)], np.float32)
    return {"text": np.repeat(text[:, None], 3, 1), "pooled": text}


def run(view, out, seconds=0.0, fits=lambda caption: True, progress=lambda done, total: None):
    def tell(done, total):
        progress(done, total)
        time.sleep(seconds)

    scaling = {"shift": [0.5, 0.0, -0.5], "scale": [2.0, 1.0, 4.0]}
    plan = {"view": view.fingerprint, "text": "letters", "autoencoder": "moments"}
    claim(out, plan | {"buckets": SHAPES.shapes, "scaling": scaling})
    images = encode_images(view, out, moments, SHAPES, batch_size=4, per_shard=8, progress=tell)
    return images, encode_captions(view, out, letters, fits, batch_size=4, per_shard=16, progress=tell)


if __name__ == "__main__":
    run(View(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
