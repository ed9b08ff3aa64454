"""Checkpoints by Orbax, written while training goes on. The only file that imports orbax.

A save is atomic: a checkpoint appears under its step, by a rename, when it is whole and on the disk. So a run that is
killed, or loses its power, at any moment finds its last one. Beside the state lies `checkpoint.json` (`description.py`)
with digests of the arrays and of every file: what is read back is what was saved, or is refused. A file that is
damaged, empty or missing is damage, never another version or another network, which only an intact description can
prove.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jdiff.parallel import wait_for_all
from jdiff.train import description
from jdiff.train.description import DamagedError, steps_in
from jdiff.train.digest import digest
from jdiff.train.keep import Keep

_SCHEMA = 3
"""Of `TrainState`: 1 had no counts of skipped updates, 2 no profiles."""
_ROOM = 2.5
"""Free space that a save asks for, in sizes of the state: what each process writes is merged before it is removed."""
_UNFINISHED = re.compile(r"\d+\.(saving|removed|orbax-checkpoint-tmp).*")


class Checkpoints:
    """The checkpoints of one run, by step. Close it, or use it as a context, to finish the save under way."""

    def __init__(self, directory: Path, keep: Keep | None = None):
        """With `keep`, for the run that saves: what an interrupted save has left is removed, and after each save the
        checkpoints up to it that `keep` does not name. Without, nothing is."""
        self.directory = directory.absolute()
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        if keep is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._place_of = self.directory.stat()
            self._clean()

    def __enter__(self):
        return self

    def __exit__(self, kind: Any, error: BaseException | None, *_: Any):
        try:
            self.wait()
        except OSError:
            if error is None:  # what has gone wrong first is what is told
                raise
        finally:
            self._pool.shutdown()

    @property
    def steps(self) -> list[int]:
        """The steps that have been saved, in order; whether they can be restored is seen when they are."""
        return steps_in(self.directory)

    def save(self, step: int, state: Any, experiment: str, loss: float | None = None) -> None:
        """Starts saving, with the fingerprint of the experiment and the `loss` that `Keep.best` goes by, None for what
        is not to be among the best; returns once the arrays are copied, so that they may be donated. Raises OSError,
        before anything is written, where the disk has no room for it, and as `wait` does for the save before."""
        self.wait()  # what it writes, or removes, counts
        if self._keep is None:
            self.directory.mkdir(parents=True, exist_ok=True)
        self._check_place()
        needed = _ROOM * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            last = f"that of step {self.steps[-1]} is whole" if self.steps else "there is none yet"
            raise OSError(
                f"no room for the checkpoint of step {step} in {self.directory}: it needs {needed / 1e6:.1f} MB and "
                f"{free / 1e6:.1f} MB are free; {last}"
            )
        about: dict[str, Any] = {"schema": _SCHEMA, "step": step, "experiment": experiment, "digest": digest(state)}
        about |= {"network": description.network(state.params)} | ({} if loss is None else {"loss": loss})
        path = str(self.directory / f"{step}.saving")
        save = lambda: ocp.save_async(path, state, overwrite=True)
        self._saving = self._pool.submit(self._finish, about, self._written(step, save))

    def wait(self) -> None:
        """Returns when the save under way is whole. Raises OSError, naming the checkpoint, where it cannot be
        written."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _written(self, step: int, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except Exception as error:  # Orbax and TensorStore raise errors of many kinds
            self._clean()
            raise OSError(
                f"checkpoint {self.directory / str(step)} cannot be written ({_first_line(error)})"
            ) from error

    def _finish(self, about: dict[str, Any], response: Any) -> None:
        """Waits for a save, gives it its place, and removes what need not stay, in a thread of its own."""
        self._written(about["step"], response.result)
        self._check_place()
        if jax.process_index() == 0:
            self._written(about["step"], lambda: self._place(about))

    def _check_place(self) -> None:
        """Raises OSError where the directory of a run has been removed or moved away, and removes what Orbax, which
        makes folders that are missing, has put in its place."""
        try:
            if self._keep is None or os.path.samestat(self._place_of, self.directory.stat()):
                return
        except FileNotFoundError:
            pass
        self._clean()
        for folder in (self.directory, self.directory.parent):
            with contextlib.suppress(OSError):  # not empty, or gone
                folder.rmdir()
        raise OSError(f"{self.directory} is gone; nothing more is written there")

    def _place(self, about: dict[str, Any]) -> None:
        step = about["step"]
        unfinished, place = self.directory / f"{step}.saving", self.directory / str(step)
        description.write(unfinished, about)
        if place.exists():  # damaged, and passed over
            self._remove(step)
        unfinished.rename(place)
        # What lies after it was passed over, too, and is for a later save to replace.
        saved = [one for one in self.steps if one <= step]
        for one in set(saved) - (self._keep.chosen(saved, self._loss) if self._keep else set(saved)):
            self._remove(one)

    def _remove(self, step: int) -> None:
        """By a rename first, so that nobody finds a half of it."""
        removed = self.directory / f"{step}.removed"
        (self.directory / str(step)).rename(removed)
        _remove(removed)

    def _clean(self) -> None:
        """Removes what an interrupted save or removal has left; the first process alone."""
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.iterdir():
                if _UNFINISHED.fullmatch(path.name):
                    _remove(path)

    def _loss(self, step: int) -> float | None:
        try:
            return self.about(step).get("loss")
        except DamagedError:
            return None

    def about(self, step: int) -> dict[str, Any]:
        """Schema, experiment, digest and, where there is one, loss of a checkpoint. Raises DamagedError if they cannot
        be read."""
        return description.read(self.directory / str(step))

    def newest(self, abstract: Any, passed: Callable[[str], None]) -> tuple[int, Any] | None:
        """Step and state of the newest checkpoint that is whole, None where there is none at all; `passed` hears of
        each damaged one before it. One that is removed meanwhile, by the run that writes here, is no damage. Raises
        DamagedError if all are damaged, ValueError for another network or version."""
        self.wait()
        wait_for_all("the checkpoint under way is in its place")
        tried: set[int] = set()
        damage = None
        while steps := [step for step in self.steps if step not in tried]:
            step = steps[-1]
            tried.add(step)
            try:
                return step, self.restore(step, abstract)
            except DamagedError as error:
                if (self.directory / str(step)).exists():
                    damage = error
                    passed(str(error))
        if damage is not None:
            raise damage
        return None

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of a step, in the shapes, dtypes and shardings of `abstract`.

        Raises ValueError naming the checkpoint if it belongs to another network or has another schema, DamagedError if
        it does not hold what was saved.
        """
        folder = self.directory / str(step)
        where = f"checkpoint {folder}"
        about = self.about(step)
        if about["schema"] != _SCHEMA:
            raise ValueError(
                f"{where} has schema {about['schema']} of the training state; this version reads {_SCHEMA}"
            )
        description.check_files(folder, about)
        damaged = lambda what, error: DamagedError(f"{where} is damaged: {what} ({_first_line(error)})")
        try:
            params = ocp.metadata(str(folder)).metadata["params"]
        except Exception as error:
            raise damaged("its arrays cannot be listed", error) from error
        if wrong := description.differences(params, abstract.params):
            raise ValueError(f"{where} belongs to another network: {'; '.join(wrong)}")
        try:
            state = ocp.load(str(folder), abstract)
        except Exception as error:
            raise damaged("it cannot be read", error) from error
        if digest(state) != about["digest"]:
            raise DamagedError(f"{where} is damaged: its arrays are not those that were saved")
        if int(inside := getattr(state, "step", step)) != step:
            raise DamagedError(f"{where} is not of step {step}: it is a copy of that of step {int(inside)}")
        return state


def _remove(path: Path) -> None:
    path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [""])[0][:200]
