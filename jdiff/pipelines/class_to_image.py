"""Pictures from seeds and classes, with the networks of a folder: DDPM and DDIM on pixels, DiT on latents.

pipeline = ClassToImage.from_pretrained("path/to/dit")
images = pipeline(seeds=[0, 1], labels=[207, 360], guidance=4.0)
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.models import Compute
from jdiff.pipelines.draw import drawing, first_state, keys_of, planned
from jdiff.pipelines.fit import check_classes
from jdiff.pipelines.folder import Folder, read_folder, save_folder
from jdiff.pipelines.kinds import CLASS_TO_IMAGE
from jdiff.prediction import LearnedVariance
from jdiff.typing import Array


class ClassToImage:
    """Draws images [n, H, W, C], float32 in [-1, 1]. It compiles once for a number of images, of steps and a solver."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.params = {name: part.params for name, part in folder.networks.items()}
        self.core = "transformer" if "transformer" in folder.networks else "unet"
        self.network, self.config = folder.networks[self.core].network, folder.networks[self.core].config
        self.num_classes = getattr(self.config, "num_embeds_ada_norm", None) or 0
        self.num_classes = self.num_classes or getattr(self.config, "num_class_embeds", None) or 0
        told, channels = folder.schedule.parameterization, self.config.in_channels
        if self.config.out_channels == 2 * channels:
            told = LearnedVariance(mean=told)  # pyright: ignore[reportArgumentType]  one of those, from `read_schedule`
        self.schedule = folder.schedule._replace(parameterization=told)
        self._drawn: dict[Any, Any] = {}
        if "vae" in folder.networks:
            vae = folder.networks["vae"]
            self._decode = jax.jit(lambda params, x: vae.network.apply(params, vae.config.restored(x), method="decode"))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        variant: str | None = None,
        compute: Compute | None = None,
        **options: Any,
    ) -> "ClassToImage":
        """The pipeline of a folder, or of a repository of the hub: DDPM, DDIM or DiT.

        `variant`: of the weights, such as "fp16", where a part has it. `options` are those of
        `interop.from_pretrained`, for each network. Raises ValueError for a folder that does not
        fit, FileNotFoundError for one that is not there.
        """
        told = {"check": check_classes, "encoders": {}, "limits": {}, "variant": variant, "compute": compute}
        return cls(read_folder(source, CLASS_TO_IMAGE, **told, **options))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the pipeline with `params`, so that diffusers loads it. Raises ValueError for the folder that it was
        read from."""
        save_folder(folder, self.folder, self.params)

    def __call__(
        self,
        *,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        steps: int = 50,
        guidance: float = 1.0,
        solver: str | None = None,
        latents: Array | np.ndarray | None = None,
        decode: bool = True,
    ) -> np.ndarray:
        """Images [n, H, W, C] of n seeds, one class each where the network has classes.

        `guidance` other than 1 is for a network with a label for no class, as DiT's. `latents` [n, h, w, c]: the state
        at the first time of the grid, in the place of a draw from the prior. With `decode` false, the state at the end.
        Raises ValueError for labels that do not fit, and guidance without a null label.
        """
        cond, null = self._conditions(len(seeds), labels, guidance != 1)
        plan, guided = planned(self.schedule, steps, solver), bool(null)
        keys, size = keys_of(seeds), self.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        x = first_state(plan, keys, (height, width, self.config.in_channels), latents)
        if guided not in self._drawn:
            self._drawn[guided] = drawing(self.network, self.schedule, guided)
        x = self._drawn[guided](self.params[self.core], keys, x, cond, null, jnp.float32(guidance), plan)
        return np.asarray(self._decoded(x) if decode else x)

    def _conditions(self, count: int, labels: Sequence[int] | None, guided: bool) -> tuple[dict, dict]:
        if count < 1:
            raise ValueError("seeds: there is none")
        if (labels is None) != (self.num_classes == 0) or (labels is not None and len(labels) != count):
            raise ValueError(f"labels: {labels} for {count} seeds and a network of {self.num_classes} classes")
        has_null = self.core == "transformer" and self.num_classes > 0
        if guided and not has_null:
            raise ValueError("guidance: this network has no label for no class; 1 is without guidance")
        if labels is None:
            return {}, {}
        if not all(0 <= label < self.num_classes + has_null for label in labels):
            raise ValueError(f"labels: {list(labels)}, they must lie in 0..{self.num_classes - 1 + has_null}")
        cond = {"label": jnp.asarray(labels, jnp.int32)}
        return cond, {"label": jnp.full(count, self.num_classes, jnp.int32)} if guided else {}

    def _decoded(self, x: Array) -> Array:
        if "vae" in self.params:
            x = self._decode(self.params["vae"], x)
        return jnp.clip(x, -1, 1)
