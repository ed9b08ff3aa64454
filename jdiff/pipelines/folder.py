"""A pipeline's folder in the layout of diffusers: model_index.json, and a folder for each part that it names.

What can be refused is refused before the first weight is read: configs, the scheduler, tokenizers, and the headers of
all weights come first. Of two classes that a folder says of a part, the index's counts, as in diffusers.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jdiff.interop import Pretrained, from_pretrained, open_tensors, read_config, save_pretrained
from jdiff.interop.configs import CLASSES, replaced, weights_name
from jdiff.interop.missing_weights import variants
from jdiff.interop.pretrained import check_count, located
from jdiff.interop.schedulers import Schedule, read_schedule
from jdiff.json_files import read_object
from jdiff.models import CONFIGS, Compute
from jdiff.pipelines.fit import check_tokenizer
from jdiff.pipelines.kinds import NOT_RUN, Kind
from jdiff.text import Tokenizer, load_tokenizer

LATENT_EDGE = 64
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"


class Index(NamedTuple):
    """What model_index.json says."""

    kind: str
    """The pipeline's class in diffusers."""
    parts: dict[str, str]
    """The classes of the parts that there are."""
    settings: dict[str, Any]
    """The rest."""
    fields: dict[str, Any]
    """All of it, as it is written."""


class Folder(NamedTuple):
    """What a pipeline's folder holds."""

    path: Path
    kind: str
    """The pipeline's class in diffusers, or another one that has the same parts."""
    settings: dict[str, Any]
    """What model_index.json says besides the parts, with the defaults of the class."""
    networks: dict[str, Pretrained]
    tokenizers: dict[str, Tokenizer]
    schedule: Schedule
    vocabularies: dict[str, Path]
    """The folders of the tokenizers."""
    files: dict[str, dict[str, Any]]
    """model_index.json and scheduler_config.json."""


def read_index(folder: Path) -> Index:
    """The index of a pipeline's folder. Raises ValueError for one that is no index, and for a pipeline of code of its
    own; FileNotFoundError where there is none."""
    path = folder / INDEX
    if not path.exists():
        raise FileNotFoundError(f"{folder} is no folder of a pipeline: it has no {INDEX}")
    fields = read_object(path)
    kind = fields.get("_class_name")
    if not isinstance(kind, str):
        raise ValueError(f"{path}: _class_name must name a class of diffusers, got {kind!r}")
    pair = lambda value: isinstance(value, list) and len(value) == 2
    named = {name: value for name, value in fields.items() if pair(value) and not name.startswith("_")}
    wrong = [f"{name}={value!r}" for name, value in named.items() if not isinstance(value[1], str | None)]
    if wrong:
        raise ValueError(f"{path}: parts must be [library, class], got {', '.join(wrong)}")
    parts = {name: value[1] for name, value in named.items() if value[1] is not None}
    settings = {name: value for name, value in fields.items() if name not in named and not name.startswith("_")}
    return Index(kind, parts, settings, fields)


def config_class(index: Index, name: str, source: Path) -> type:
    """The class of a part's config. Raises ValueError for a network that there is not."""
    published = CLASSES.get(index.parts[name], index.parts[name])
    known = {config.published: config for config in CONFIGS}
    if published not in known:
        raise ValueError(f"{source}: {name} is a {index.parts[name]}; there are {', '.join(known)}")
    return known[published]


def read_folder(
    source: str | os.PathLike,
    kinds: Mapping[str, Kind],
    *,
    check: Callable[[str, str, Mapping[str, Any]], None],
    encoders: Mapping[str, Mapping[str, str]],
    limits: Mapping[str, int],
    variant: str | None,
    compute: Compute | None,
    **options: Any,
) -> Folder:
    """The parts of a pipeline of one of `kinds`.

    `check` is called with the folder, the kind's base and the networks' configs, and raises ValueError where they do
    not fit. `encoders`: of each base, the encoders of prompts and their tokenizers. `limits`: of tokens, of tokenizers
    that do not go by their folder's own. `variant`: of the weights, of each part that has it. `options` are those of
    `from_pretrained`. Raises ValueError for a pipeline of another class, parts that are missing or that no one knows,
    all of them, and for what does not fit;
    FileNotFoundError for a folder without model_index.json, and where no part has the variant.
    """
    folder = located(source)
    index = read_index(folder)
    if index.kind not in kinds:
        raise ValueError(f"{folder} is a {index.kind}; there are {', '.join(kinds)}")
    kind = kinds[index.kind]
    present = present_parts(folder, index, kind)
    configs = {
        name: read_config(folder / name / "config.json", config_class(index, name, folder))
        for name in sorted(present)
        if not name.startswith(("tokenizer", "scheduler"))
    }
    check(str(folder), kind.base, configs)
    schedule, scheduler = _schedule(folder, index, kind)
    tokenizers = {}
    for encoder, name in encoders.get(kind.base, {}).items():
        if encoder in configs:
            limit = limits.get(name)
            usual = getattr(configs[encoder], "max_position_embeddings", None)
            tokenizers[name] = load_tokenizer(folder / name, limit=limit, usual=usual)
            check_tokenizer(str(folder), name, tokenizers[name], configs[encoder])
    chosen = _variants(folder, configs, variant)
    for name, config in configs.items():
        with open_tensors(folder / name, weights_name(config), chosen[name]) as tensors:
            check_count(config, tensors, str(folder / name))
    networks = {
        name: from_pretrained(folder / name, expected=type(config), variant=chosen[name], compute=compute, **options)
        for name, config in configs.items()
    }
    if kind.sizes:
        networks["unet"] = _sized(networks["unet"], read_object(folder / "unet" / "config.json"))
    files = {INDEX: index.fields, SCHEDULER: scheduler}
    vocabularies = {name: folder / name for name in tokenizers}
    settings = {**kind.settings, **index.settings}
    return Folder(folder, kind.base, settings, networks, tokenizers, schedule, vocabularies, files)


def present_parts(folder: Path, index: Index, kind: Kind) -> set[str]:
    """The parts that are read."""
    present = index.parts.keys() - NOT_RUN
    wanted, optional = ({name.rstrip("?") for name in kind.parts if name.endswith("?") == q} for q in (False, True))
    missing, unknown = sorted(wanted - present), sorted(present - wanted - optional)
    if missing or unknown:
        raise ValueError(f"{folder}: parts missing {missing or 'none'}, unknown {unknown or 'none'}")
    return present


def _schedule(folder: Path, index: Index, kind: Kind) -> tuple[Schedule, dict[str, Any]]:
    """The schedule, and the fields of its file. The class is the index's, and some fields are the pipeline's."""
    path = folder / SCHEDULER
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    cls = kind.scheduler or index.parts["scheduler"]
    return read_schedule(path, kind=cls, pipeline=index.kind), read_object(path)


def _sized(unet: Pretrained, fields: Mapping[str, Any]) -> Pretrained:
    """The U-Net with the size that its pipeline takes it to have been trained on: before 0.9, diffusers wrote 32 for
    the 64 of Stable Diffusion 1."""
    version = re.match(r"(\d+)\.(\d+)", str(fields.get("_diffusers_version")))
    old = version is not None and tuple(map(int, version.groups())) < (0, 9)
    if not old or not isinstance(unet.config.sample_size, int) or unet.config.sample_size >= LATENT_EDGE:
        return unet
    return unet._replace(config=replaced(unet.config, sample_size=LATENT_EDGE))


def _variants(folder: Path, configs: Mapping[str, Any], variant: str | None) -> dict[str, str | None]:
    """The variant of each network: the one that is asked for, or the plain weights of a part that has not it."""
    if variant is None:
        return dict.fromkeys(configs)
    there = {
        name: variants([path.name for path in (folder / name).iterdir()], weights_name(config))
        for name, config in configs.items()
    }
    if not any(variant in some for some in there.values()):
        known = sorted({one for some in there.values() for one in some if one is not None})
        raise FileNotFoundError(f"{folder} has no weights of variant {variant!r}; it has {', '.join(known) or 'none'}")
    return {name: variant if variant in some else None for name, some in there.items()}


def save_folder(target: str | os.PathLike, folder: Folder, params: Mapping[str, Any]) -> None:
    """Writes a pipeline with these parameters: its tokenizers are copied, and model_index.json comes last.

    Raises ValueError for the folder that it was read from, and parameters that are not those of its networks.
    """
    target = Path(target)
    if target.exists() and target.samefile(folder.path):
        raise ValueError(f"{target} is the folder that the pipeline was read from; write to another")
    if params.keys() != folder.networks.keys():
        raise ValueError(f"params: {sorted(params)} are not the networks {sorted(folder.networks)}")
    for name, part in folder.networks.items():
        save_pretrained(target / name, part.config, params[name])
    for name, source in folder.vocabularies.items():
        if source.resolve() != (target / name).resolve():
            shutil.copytree(source, target / name, dirs_exist_ok=True)
    index = {name: value for name, value in folder.files[INDEX].items() if name not in NOT_RUN}
    (target / SCHEDULER).parent.mkdir(exist_ok=True)
    (target / SCHEDULER).write_text(json.dumps(folder.files[SCHEDULER], indent=2) + "\n")
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
