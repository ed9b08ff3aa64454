"""Checkpoints by Orbax, written while training goes on. The only file that imports orbax.

A save is atomic: it is visible under its step only when it is whole, so a run killed at any moment finds its last one.
With the state it commits the schema of the state, the experiment's fingerprint and a digest of all arrays; what is read
back is what was saved, or is refused.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jdiff.train.digest import digest
from jdiff.train.keep import Keep
from jdiff.typing import Params

_SCHEMA = 3
"""Of `TrainState`: 1 had no counts of skipped updates, 2 no profiles."""
_ROOM = 2.5
"""Free space that a save asks for, in sizes of the state: what each process writes is merged before it is removed."""


class DamagedError(ValueError):
    """A checkpoint that does not hold what was saved."""


class Checkpoints:
    """The checkpoints of one run, by step. Close it, or use it as a context, to finish the save under way."""

    def __init__(self, directory: Path, keep: Keep | None = None):
        """With `keep`, for the run that saves: what an interrupted save has left is removed, and so are checkpoints
        that it does not name. Without, nothing is."""
        self.directory = directory.absolute()
        policy: Any = ocp.training.preservation_policies.PreserveAll() if keep is None else _policy(keep)
        self._checkpointer = ocp.training.Checkpointer(
            str(self.directory), preservation_policy=policy, cleanup_tmp_directories=keep is not None
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: Any, experiment: str, loss: float | None = None) -> None:
        """Starts saving, with the fingerprint of the experiment and the `loss` that `Keep.best` goes by, None for what
        is not to be among the best; returns once the arrays are copied, so that they may be donated. Raises OSError,
        before anything is written, where the disk has no room for it."""
        self._checkpointer.wait()  # what it writes, or removes, counts
        needed = _ROOM * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            last = f"that of step {self.steps[-1]} is whole" if self.steps else "there is none yet"
            raise OSError(
                f"no room for the checkpoint of step {step} in {self.directory}: it needs {needed / 1e6:.1f} MB and "
                f"{free / 1e6:.1f} MB are free; {last}"
            )
        metrics: dict[str, Any] = {} if loss is None else {"loss": loss}
        about = {"schema": _SCHEMA, "experiment": experiment, "digest": digest(state), **metrics}
        # A damaged checkpoint that was passed over may stand there.
        self._checkpointer.save_async(
            step,
            state,
            force=True,
            overwrite=step in self.steps,
            metrics=metrics or None,
            custom_metadata=about,
        )

    def wait(self) -> None:
        """Returns when the save under way is whole."""
        self._checkpointer.wait()

    def about(self, step: int) -> dict[str, Any]:
        """Schema, experiment, digest and, where there is one, loss of a checkpoint. Raises DamagedError if they cannot
        be read."""
        return _about(self._read(step))

    def newest(self, abstract: Any, passed: Callable[[str], None]) -> tuple[int, Any] | None:
        """Step and state of the newest checkpoint that is whole, None where there is none at all; `passed` hears of
        each damaged one before it. Raises DamagedError if all are damaged, ValueError for another network."""
        self._checkpointer.wait()
        damage = None
        for step in reversed(self.steps):
            try:
                return step, self.restore(step, abstract)
            except DamagedError as error:
                damage = error
                passed(str(error))
        if damage is not None:
            raise damage
        return None

    def _read(self, step: int) -> Any:
        where = f"checkpoint {self.directory / str(step)}"
        try:
            return self._checkpointer.metadata(step)
        except Exception as error:
            raise DamagedError(f"{where} is damaged: its metadata cannot be read ({_first_line(error)})") from error

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of a step, in the shapes, dtypes and shardings of `abstract`.

        Raises ValueError naming the checkpoint if it belongs to another network or has another schema, DamagedError if
        it does not hold what was saved.
        """
        where = f"checkpoint {self.directory / str(step)}"
        read = self._read(step)
        saved, about = read.metadata, _about(read)
        if saved is None:
            raise DamagedError(f"{where} is damaged: its arrays cannot be listed")
        if about["schema"] != _SCHEMA:
            raise ValueError(
                f"{where} has schema {about['schema']} of the training state; this version reads {_SCHEMA}"
            )
        wrong = _differences(saved["params"], abstract.params)
        if wrong:
            raise ValueError(f"{where} belongs to another network: {'; '.join(wrong)}")
        try:
            state = self._checkpointer.load(step, abstract)
        except Exception as error:
            raise DamagedError(f"{where} is damaged: it cannot be read ({_first_line(error)})") from error
        if digest(state) != about["digest"]:
            raise DamagedError(f"{where} is damaged: its arrays are not those that were saved")
        return state


def _policy(keep: Keep) -> Any:
    """What stays, as Orbax is told."""
    policies = ocp.training.preservation_policies
    chosen: list[Any] = [policies.LatestN(keep.latest)]
    if keep.every is not None:
        chosen.append(policies.EveryNSteps(keep.every))
    if keep.best:
        # Orbax keeps the last n in ascending order; reversed, these have the lowest loss.
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["loss"],
            reverse=True,
            n=keep.best,
            keep_checkpoints_without_metrics=False,
        )
        chosen.append(best)
    return policies.AnyPreservationPolicy(chosen)


def _about(read: Any) -> dict[str, Any]:
    return read.custom_metadata or {"schema": 1}


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [""])[0][:200]


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    is_leaf = lambda node: hasattr(node, "shape")
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)[0]
    return {"/".join(str(entry.key) for entry in path): tuple(leaf.shape) for path, leaf in leaves}


def _differences(saved: Params, expected: Params) -> list[str]:
    saved, expected = _shapes(saved), _shapes(expected)
    names = sorted(saved.keys() | expected.keys())
    wrong = [
        f"{name} is {saved.get(name, 'missing')} there and {expected.get(name, 'missing')} here"
        for name in names
        if saved.get(name) != expected.get(name)
    ]
    return wrong if len(wrong) <= 3 else [*wrong[:3], f"and {len(wrong) - 3} more"]
