"""Pictures from prompts, by latent diffusion (2112.10752): text encoders, a network on latents, an autoencoder.

    pipeline = TextToImage.from_pretrained("path/to/stable-diffusion")
    images = pipeline(["a red cube", "a blue ball"], seeds=[0, 1], steps=20, guidance=7.5)

Each prompt has a seed of its own, and its picture is the same drawing alone or among others.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.models import Compute, timesteps
from jdiff.pipelines.draw import drawing, first_state, keys_of, planned
from jdiff.pipelines.fit import check_ids, check_parts
from jdiff.pipelines.folder import Folder, read_folder, save_folder
from jdiff.pipelines.kinds import SD3, TEXT_TO_IMAGE, XL
from jdiff.pipelines.prompts import CLIPS, CONDITIONS, T5, T5_TOKENS
from jdiff.pipelines.single_file import read_single_file
from jdiff.typing import Array, Cond


class TextToImage:
    """Draws images [n, H, W, 3], float32 in [-1, 1], from prompts.

    It compiles once for a size, a number of steps, a solver and a number of pieces of the prompts: prompts, seeds and
    the scale of guidance are values.
    """

    def __init__(self, folder: Folder):
        self.folder, self.kind, self.settings = folder, folder.kind, folder.settings
        self.schedule = folder.schedule
        # The parameters are in `params` alone, where they may be replaced.
        self.networks = {name: part._replace(params={}) for name, part in folder.networks.items()}
        self.params = {name: part.params for name, part in folder.networks.items()}
        self.core = "transformer" if "transformer" in self.networks else "unet"
        self.factor = self.networks["vae"].config.divisor
        # Of a distilled network, which is told the scale of guidance and evaluated once.
        self.distilled = getattr(self.networks[self.core].config, "time_cond_proj_dim", None)
        encoders = CLIPS[self.kind] | (T5 if "text_encoder_3" in self.networks else {})
        self._tokenizer_of = {encoder: folder.tokenizers[name] for encoder, name in encoders.items()}
        self._encode = jax.jit(partial(CONDITIONS[self.kind], self.networks))
        self._decode = jax.jit(self._decoded)
        self._drawn: dict[Any, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        variant: str | None = None,
        compute: Compute | None = None,
        **options: Any,
    ) -> "TextToImage":
        """The pipeline of a folder, or of a repository of the hub: Stable Diffusion 1, 2, XL or 3, also as a latent
        consistency model (2310.04378), and folders of other pipelines with the same parts.

        `variant`: of the weights, such as "fp16", where a part has it. `options` are those of
        `interop.from_pretrained`, for each network. A safety checker is not run. Raises ValueError for a folder that
        does not fit, and for networks that take more than a prompt, such as those that fill in a mask;
        FileNotFoundError for one that is not there.
        """
        encoders = {kind: clips | (T5 if kind == SD3 else {}) for kind, clips in CLIPS.items()}
        return cls(
            read_folder(
                source,
                TEXT_TO_IMAGE,
                check=check_parts,
                encoders=encoders,
                limits={"tokenizer_3": T5_TOKENS},
                variant=variant,
                compute=compute,
                **options,
            )
        )

    @classmethod
    def from_single_file(
        cls,
        source: str | os.PathLike,
        *,
        tokenizer: str | os.PathLike,
        tokenizer_2: str | os.PathLike | None = None,
        tokenizer_3: str | os.PathLike | None = None,
        prediction_type: str | None = None,
        compute: Compute | None = None,
        **options: Any,
    ) -> "TextToImage":
        """The pipeline of one safetensors file in the original layout: Stable Diffusion 1, 2, XL or 3.

        The file has no tokenizers: these are folders, XL takes two, and 3 as many as it has encoders of prompts.
        `prediction_type`: what the U-Net predicts, "epsilon" or "v_prediction"; by default what the file says
        (`interop.original_files.marked`). Where it says nothing, that is "epsilon" in 1 and XL, and "v_prediction" in
        2, as in 2.0 and 2.1 at 768 pixels; their bases at 512 pixels are "epsilon". The scheduler is the published
        one. `options` are those of `interop.from_single_file`, which also
        says what is raised; besides, ValueError for tokenizers that are not those of its encoders.
        """
        folders = {"tokenizer": tokenizer, "tokenizer_2": tokenizer_2, "tokenizer_3": tokenizer_3}
        encoders = {kind: clips | (T5 if kind == SD3 else {}) for kind, clips in CLIPS.items()}
        limits = {"tokenizer_3": T5_TOKENS}
        options |= {"prediction_type": prediction_type, "compute": compute}
        return cls(read_single_file(source, folders, encoders=encoders, limits=limits, **options))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the pipeline with `params`, so that diffusers loads it. A safety checker is left out. Raises
        ValueError for the folder that it was read from."""
        save_folder(folder, self.folder, self.params)

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        negative: Sequence[str] | None = None,
        steps: int = 20,
        guidance: float = 7.5,
        solver: str | None = None,
        height: int | None = None,
        width: int | None = None,
        long: str = "refuse",
        weights: bool = False,
        latents: Array | np.ndarray | None = None,
        decode: bool = True,
    ) -> np.ndarray:
        """Images [n, height, width, 3] of n prompts, each with its own seed.

        `negative`: what is moved away from, one for each prompt. `guidance`: 1 evaluates the prompt alone; a distilled
        network is told it, and takes no `negative`. `solver`: a
        name of `samplers.SOLVERS`, the folder's own unless given. `long`: what becomes of a prompt that is too long,
        "refuse" or "chunk". `weights`: read "(word:1.3)" as a weight. `latents` [n, h, w, c]: the state at the first
        time of the grid, in the place of a draw from the prior. With `decode` false, the latents at the end.

        Raises ValueError for lists that do not fit together, sizes that do not divide, and prompts as `Tokenizer` does.
        """
        self._check(prompts, seeds, negative)
        height, width = self._size(height, 0), self._size(width, 1)
        guided = guidance != 1 and self.distilled is None
        cond, null = self._conditions(prompts, negative, long, weights, guided, (height, width))
        if self.distilled is not None:
            cond |= {"timestep_cond": scale_of_guidance(guidance, len(prompts), self.distilled)}
        tokens = height * width // (self.factor * self.networks[self.core].config.divisor) ** 2
        plan, keys = planned(self.schedule, steps, solver, tokens), keys_of(seeds)
        shape = (height // self.factor, width // self.factor, self.networks[self.core].config.in_channels)
        x = first_state(plan, keys, shape, latents)
        if guided not in self._drawn:
            self._drawn[guided] = drawing(self.networks[self.core].network, self.schedule, guided)
        x = self._drawn[guided](self.params[self.core], keys, x, cond, null, jnp.float32(guidance), plan)
        return np.asarray(self._decode(self.params["vae"], x) if decode else x)

    def _check(self, prompts: Sequence[str], seeds: Sequence[int], negative: Sequence[str] | None) -> None:
        if isinstance(prompts, str) or isinstance(negative, str):
            raise ValueError("prompts and negative are lists of strings, one for each picture")
        if not prompts:
            raise ValueError("prompts: there is none")
        for name, given in (("seeds", seeds), ("negative", negative)):
            if given is not None and len(given) != len(prompts):
                raise ValueError(f"{name}: {len(given)} of them for {len(prompts)} prompts")
        if negative is not None and self.distilled is not None:
            raise ValueError("negative: this network is told the scale of guidance, and moves away from nothing")

    def _size(self, given: int | None, axis: int) -> int:
        config = self.networks[self.core].config
        multiple, usual = self.factor * config.divisor, config.sample_size
        if given is None and usual is None:
            raise ValueError("height and width: the folder does not say the size it was trained on; give both")
        usual = usual[axis] if isinstance(usual, tuple) else usual
        size = (usual or 0) * self.factor if given is None else given
        if size < 1 or size % multiple:
            raise ValueError(f"height and width: {size} is not a positive multiple of {multiple}")
        return size

    def _conditions(
        self,
        prompts: Sequence[str],
        negative: Sequence[str] | None,
        long: str,
        weights: bool,
        guided: bool,
        size: tuple[int, int],
    ) -> tuple[Cond, Cond]:
        """Those of the prompts, and of what is moved away from; as many pieces for both."""
        count = len(prompts)
        every = [*prompts, *(negative or [""] * count)] if guided else list(prompts)
        tokens = {
            encoder: tokenizer(every, long=long, weights=weights) for encoder, tokenizer in self._tokenizer_of.items()
        }
        for encoder, ids in tokens.items():
            check_ids(encoder, self.networks[encoder].config, ids.ids)
        cond = self._encode(self.params, tokens)
        cond, null = (
            {name: value[part] for name, value in cond.items()} for part in (slice(count), slice(count, None))
        )
        if negative is None and self.settings.get("force_zeros_for_empty_prompt"):
            null = jax.tree.map(jnp.zeros_like, null)
        if self.kind == XL:
            picture = jnp.broadcast_to(jnp.array([*size, 0, 0, *size], jnp.float32), (count, 6))
            cond, null = cond | {"time_ids": picture}, null | {"time_ids": picture}
        return cond, null if guided else {}

    def _decoded(self, params: Any, latents: Array) -> Array:
        vae = self.networks["vae"]
        images = vae.network.apply(params, vae.config.restored(latents), method="decode")
        return jnp.clip(images, -1, 1)


def scale_of_guidance(scale: float, count: int, width: int) -> Array:
    """[count, width]: what a distilled network is told of the scale of guidance w, sinusoids of 1000 (w - 1)."""
    return timesteps(jnp.full(count, 1000 * (scale - 1), jnp.float32), width, flip=False)
