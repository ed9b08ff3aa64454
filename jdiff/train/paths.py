"""Paths in an experiment: where its data lies on this machine, which is no part of what the run is.

The config of a run holds absolute paths, so that it can be opened from any directory. An older run may hold a relative
one: it is taken from the current directory, and where nothing is there, from the run's own folder or the nearest folder
above that has it. The fingerprint of the data says whether that is the data of the run.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jdiff.experiment import Experiment

FIELDS = ("folder", "view", "tfds_dir", "pipeline")
"""Fields of `data` that are paths; a `pipeline` may also be a name on the hub."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moved:
    """Where the data of a run lies now, if it has been moved; its content must be the same."""

    folder: str | None = None
    """Of images, or of latents."""
    view: str | None = None
    """File of a view."""
    tfds_dir: str | None = None
    """Where tfds keeps its datasets."""
    pipeline: str | None = None
    """Folder, or name on the hub, of the autoencoder of latents."""


def absolute(experiment: Experiment) -> Experiment:
    """The experiment with its paths from the root. What leads to nothing here stays as it is: it may be a name on the
    hub, or is refused by what opens it."""

    def path(value: str) -> str:
        return str(Path(value).absolute()) if Path(value).exists() else value

    return _with(experiment, path)


def located(experiment: Experiment, directory: Path) -> Experiment:
    """The experiment of the run in `directory`, with relative paths from where they lead to something."""

    def path(value: str) -> str:
        if Path(value).is_absolute() or "://" in value:
            return value
        places = [Path(), *(here := directory.absolute(), *here.parents)]
        return next((str((place / value).absolute()) for place in places if (place / value).exists()), value)

    return _with(experiment, path)


def moved(experiment: Experiment, data: Moved) -> Experiment:
    """The experiment with its data where `data` says. Raises ValueError for a field that its data does not have, or
    that is no path of this run."""
    given = {name: value for name, value in dataclasses.asdict(data).items() if value is not None}
    for name in given:
        if getattr(experiment.data, name, None) is None and name != "tfds_dir":
            raise ValueError(f"--data.{name.replace('_', '-')}: the data of this run has no {name}")
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **given))


def _with(experiment: Experiment, path: Callable[[str], str]) -> Experiment:
    values = {name: value for name in FIELDS if (value := getattr(experiment.data, name, None)) is not None}
    data = dataclasses.replace(experiment.data, **{name: path(value) for name, value in values.items()})
    init = None if experiment.init is None else path(experiment.init)
    return dataclasses.replace(experiment, data=data, init=init)
