"""`jdiff data encode VIEW`: latents of its images, and embeddings of its captions, to train on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from jdiff.locks import locked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
    """What `jdiff data encode` takes."""

    view: Annotated[Path, tyro.conf.Positional]
    """A view that `jdiff data filter` made."""
    autoencoder: str
    """Folder, or name on the hub, of an AutoencoderKL, or of a pipeline that has one."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder of the latents, as float16; the same command again goes on with it."""
    text: str | None = None
    """Folder, or name on the hub, of a pipeline whose text encoders read the captions, each once."""
    size: int = 512
    """Side of a square; images are cropped in their centre."""
    bucket_step: int | None = None
    """Shapes of about the area of the square, sides multiples of this, instead of squares alone."""
    batch_size: int = 8
    """Images, and captions, that are encoded at once."""
    per_shard: int = 1000
    """Images, and captions, in a shard: what is lost when the command is stopped."""
    json: bool = False
    """Print the figures as JSON."""


def encode(arguments: Encode, progress: Callable[[str], Any]) -> dict[str, Any]:
    """Writes it all. Returns counts of images and captions."""
    from jdiff.data.buckets import Buckets
    from jdiff.data.encode import claim
    from jdiff.data.view import View
    from jdiff.pipelines import image_coder, prompt_encoder

    for name in ("batch_size", "per_shard"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(arguments, name)}")
    view, step = View(arguments.view), arguments.bucket_step or arguments.size
    buckets, images = Buckets(size=arguments.size, step=step), image_coder(arguments.autoencoder)
    if step % images.divisor:
        raise ValueError(f"size and bucket_step must be multiples of {images.divisor}, the autoencoder's; got {step}")
    prompts = prompt_encoder(arguments.text) if arguments.text else None
    plan = {
        "view": view.fingerprint,
        "autoencoder": images.fingerprint,
        "scaling": images.scaling,
        "text": prompts.fingerprint if prompts else None,
        "buckets": buckets.shapes,
        "batch_size": arguments.batch_size,
        "per_shard": arguments.per_shard,
        "dtype": "float16",
    }
    with locked(arguments.out, what="encoding"):
        claim(arguments.out, plan)
        return _encoded(arguments, view, images, prompts, buckets, progress)


def _encoded(
    arguments: Encode, view: Any, images: Any, prompts: Any, buckets: Any, progress: Callable[[str], Any]
) -> dict[str, Any]:
    from jdiff.data.encode import encode_captions, encode_images

    sizes = {"batch_size": arguments.batch_size, "per_shard": arguments.per_shard}
    told = encode_images(view, arguments.out, images.encode, buckets, progress=progress("images, shard"), **sizes)
    figures: dict[str, Any] = {"out": str(arguments.out), "images": told}
    if prompts:
        tell = progress("captions, shard")
        figures["texts"] = encode_captions(view, arguments.out, prompts.encode, prompts.fits, progress=tell, **sizes)
    return figures
