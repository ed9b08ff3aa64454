"""A pipeline's folder in the layout of diffusers: model_index.json, and a folder for each part that it names."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jdiff.interop import Pretrained, from_pretrained, save_pretrained
from jdiff.interop.pretrained import located
from jdiff.interop.schedulers import Schedule, read_schedule
from jdiff.models import Compute
from jdiff.text import Tokenizer, load_tokenizer

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
# Parts that folders hold and that are not run here: a classifier of pictures, and what prepares them for encoders.
NOT_RUN = ("safety_checker", "feature_extractor", "image_encoder")


class Folder(NamedTuple):
    """What a pipeline's folder holds."""

    path: Path
    kind: str
    """The pipeline's class in diffusers."""
    settings: dict[str, Any]
    """What model_index.json says besides the parts."""
    networks: dict[str, Pretrained]
    tokenizers: dict[str, Tokenizer]
    schedule: Schedule
    vocabularies: dict[str, Path]
    """The folders of the tokenizers."""
    files: dict[str, dict[str, Any]]
    """model_index.json and scheduler_config.json."""


def read_folder(
    source: str | os.PathLike,
    kinds: Mapping[str, tuple[str, ...]],
    *,
    limits: Mapping[str, int],
    compute: Compute | None,
    **options: Any,
) -> Folder:
    """The parts of a pipeline of one of `kinds`, each with the names of the parts that it must have.

    A part whose name ends in "?" may be absent. `limits`: of tokens, of tokenizers that do not go by their folder's
    own. `options` are those of `from_pretrained`. Raises ValueError for a
    pipeline of another class, parts that are missing or that no one knows, all of them; FileNotFoundError for a folder
    without model_index.json.
    """
    folder = located(source)
    try:
        index = json.loads((folder / INDEX).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / INDEX} is not JSON: {error}") from error
    kind = index.get("_class_name")
    if kind not in kinds:
        raise ValueError(f"{folder} is a {kind}; there are {', '.join(kinds)}")
    parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    settings = {name: value for name, value in index.items() if name not in parts and not name.startswith("_")}
    present = {name for name, (_, cls) in parts.items() if cls is not None and name not in NOT_RUN}
    wanted, optional = ({name.rstrip("?") for name in kinds[kind] if name.endswith("?") == q} for q in (False, True))
    missing, unknown = sorted(wanted - present), sorted(present - wanted - optional)
    if missing or unknown:
        raise ValueError(f"{folder}: parts missing {missing or 'none'}, unknown {unknown or 'none'}")
    networks, tokenizers = {}, {}
    for name in sorted(present - {"scheduler"}):
        if name.startswith("tokenizer"):
            tokenizers[name] = load_tokenizer(folder / name, limit=limits.get(name))
        else:
            networks[name] = from_pretrained(folder / name, compute=compute, **options)
    schedule = read_schedule(folder / SCHEDULER)
    files = {INDEX: index, SCHEDULER: json.loads((folder / SCHEDULER).read_text())}
    vocabularies = {name: folder / name for name in tokenizers}
    return Folder(folder, kind, settings, networks, tokenizers, schedule, vocabularies, files)


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
