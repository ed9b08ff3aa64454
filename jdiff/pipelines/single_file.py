"""A pipeline from one file of Stable Diffusion in the original layout, and folders of tokenizers, which it has not."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jdiff.interop import Pretrained, from_single_file
from jdiff.interop.configs import VERSION, replaced, weights_name
from jdiff.interop.original_files import marked, open_original
from jdiff.interop.schedulers import schedule_of
from jdiff.interop.single_file import Family, family_of, parts_of
from jdiff.interop.tensors import DIFFUSERS
from jdiff.models import Compute
from jdiff.pipelines.fit import check_parts, check_tokenizer
from jdiff.pipelines.folder import INDEX, SCHEDULER, Folder
from jdiff.text import load_tokenizer

Paths = Mapping[str, str | os.PathLike | None]
BASE = 64  # edge of the latents of those of Stable Diffusion 2 that predict the noise


def read_single_file(
    source: str | os.PathLike,
    tokenizers: Paths,
    *,
    prediction_type: str | None,
    encoders: Mapping[str, Mapping[str, str]],
    limits: Mapping[str, int],
    compute: Compute | None,
    **options: Any,
) -> Folder:
    """The parts of a pipeline, as `folder.read_folder` gives them; it can be saved as such a folder.

    `encoders`: of each kind of pipeline, the encoders of prompts and their tokenizers. `prediction_type`: that of the
    scheduler; what the file says for None, and the family's own where it says nothing. `limits`: of tokens, as there.
    `options` are those of `from_single_file`.
    Raises ValueError as that does, for encoders and tokenizers that are missing or have nothing to do, a prediction
    that the family cannot have, and a network that takes more than latents.
    """
    path = Path(source)
    with open_original(path) as tensors:
        family = family_of(tensors.entries, str(path))
        configs = {name: config for name, (_, config) in parts_of(family, tensors.entries, str(path)).items()}
        told = marked(tensors, str(path))
    scheduler = _scheduler(family, told, prediction_type, path)
    schedule = schedule_of(scheduler, str(path))
    given = {name: Path(folder) for name, folder in tokenizers.items() if folder is not None}
    _check_encoders(path, configs, encoders[family.kind], given)
    check_parts(str(path), family.kind, configs)
    loaded = {}
    for encoder, name in encoders[family.kind].items():
        if name in given:
            usual = getattr(configs[encoder], "max_position_embeddings", None)
            loaded[name] = load_tokenizer(given[name], limit=limits.get(name), usual=usual)
            check_tokenizer(str(path), name, loaded[name], configs[encoder])
    networks = from_single_file(path, compute=compute, **options)
    if family.name == "Stable Diffusion 2" and scheduler["prediction_type"] == "epsilon":
        config = replaced(networks["unet"].config, sample_size=BASE)
        networks["unet"] = networks["unet"]._replace(config=config)
    files = {INDEX: _index(family, networks, encoders[family.kind], scheduler), SCHEDULER: scheduler}
    return Folder(path, family.kind, dict(family.settings), networks, loaded, schedule, given, files)


def _check_encoders(
    path: Path, configs: Mapping[str, Any], encoders: Mapping[str, str], tokenizers: Mapping[str, Path]
) -> None:
    missing = sorted(encoders.keys() - configs.keys() - {"text_encoder_3"})
    if missing:
        raise ValueError(f"{path} holds no {' and no '.join(missing)}: no prompt can be read; its networks alone can")
    wanted = sorted(tokenizer for encoder, tokenizer in encoders.items() if encoder in configs)
    if sorted(tokenizers) != wanted:
        raise ValueError(f"{path} takes {', '.join(wanted)}; given are {', '.join(sorted(tokenizers)) or 'none'}")


def _scheduler(family: Family, told: Mapping[str, Any], prediction_type: str | None, path: Path) -> dict[str, Any]:
    """The family's scheduler, with what the file says, and with what is asked for."""
    if "prediction_type" not in family.scheduler:
        if prediction_type is not None:
            raise ValueError(
                f"prediction_type: {path} is {family.name}, which predicts a velocity, not {prediction_type!r}"
            )
        return dict(family.scheduler)
    asked = {} if prediction_type is None else {"prediction_type": prediction_type}
    scheduler = {**family.scheduler, **told, **asked}
    if scheduler.get("rescale_betas_zero_snr") and scheduler["_class_name"] == "PNDMScheduler":
        # It has no such schedule.
        scheduler |= {"_class_name": "DDIMScheduler", "clip_sample": False}
    return scheduler


def _index(
    family: Family, networks: Mapping[str, Pretrained], encoders: Mapping[str, str], scheduler: Mapping[str, Any]
) -> dict[str, Any]:
    """What model_index.json says of it."""
    index = {"_class_name": family.kind, "_diffusers_version": VERSION, **family.settings}
    for encoder, tokenizer in encoders.items():
        kind = "T5TokenizerFast" if encoder == "text_encoder_3" else "CLIPTokenizer"
        index |= {encoder: [None, None], tokenizer: ["transformers", kind] if encoder in networks else [None, None]}
    for name, part in networks.items():
        library = "diffusers" if weights_name(part.config) == DIFFUSERS else "transformers"
        index[name] = [library, part.config.published]
    return index | {"scheduler": ["diffusers", scheduler["_class_name"]]}
