"""Checkpoints by Orbax, written while training goes on. The only file that imports orbax.

A save is atomic: it is visible under its step only when it is whole, so a run killed at any moment finds its last one.
"""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jdiff.typing import Params

_KEPT = 3


class Checkpoints:
    """The checkpoints of one run, by step. Close it, or use it as a context, to finish the save under way."""

    def __init__(self, directory: Path, *, clean: bool = False):
        """With `clean`, what an interrupted save has left is removed: only for the process that trains."""
        self.directory = directory.absolute()
        policy: Any = ocp.training.preservation_policies.LatestN(_KEPT)
        self._checkpointer = ocp.training.Checkpointer(
            str(self.directory), preservation_policy=policy, cleanup_tmp_directories=clean
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: Any) -> None:
        """Starts saving; returns once the arrays are copied, so that they may be donated."""
        self._checkpointer.save_async(step, state, force=True)

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of a step, in the shapes, dtypes and shardings of `abstract`.

        Raises ValueError naming the checkpoint if it is damaged or belongs to another network.
        """
        where = f"checkpoint {self.directory / str(step)}"
        try:
            saved = self._checkpointer.metadata(step).metadata
        except Exception as error:
            raise ValueError(f"{where} is damaged: its metadata cannot be read ({_first_line(error)})") from error
        if saved is None:
            raise ValueError(f"{where} is damaged: its arrays cannot be listed")
        wrong = _differences(saved["params"], abstract.params)
        if wrong:
            raise ValueError(f"{where} belongs to another network: {'; '.join(wrong)}")
        try:
            return self._checkpointer.load(step, abstract)
        except Exception as error:
            raise ValueError(f"{where} is damaged: it cannot be read ({_first_line(error)})") from error


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
