"""Latents and text embeddings that `jdiff data encode` wrote, by number and by caption."""

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from jdiff.data.encode import LATENTS, PLAN, TEXTS, mark
from jdiff.data.limits import RejectError
from jdiff.data.sealed import check_seal
from jdiff.data.shards import Shards
from jdiff.data.walk import name_of
from jdiff.json_files import read_object

_MAX_SIZE = 2**30


class Encoded:
    """A folder that `jdiff data encode` finished: `plan` says what it was made from.

    `table` has a row for each example, `fingerprint` is the SHA-256 of what was written.

    Raises ValueError where it was not finished. Reading raises `RejectError` where a shard is gone or has changed.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        try:
            self.plan: dict[str, Any] = _checked_plan(read_object(folder / PLAN))
            self.table = _read(folder, "latents", LATENTS)
            self._texts = _read(folder, "texts", TEXTS) if self.plan["text"] else TEXTS.empty_table()
        except (OSError, pa.ArrowException, ValueError) as error:
            raise ValueError(
                f"{folder} is not encoded, or not to the end: {error}; `jdiff data encode` goes on"
            ) from error
        # In their order, and mapped as the tables are: looked up in the file.
        self._captions = hashes(self._texts["caption"])
        self._latents, self._encodings = (
            Shards([(name_of(folder / kind / f"{number:05}.tar"), "") for number in range(_shards(table))])
            for kind, table in (("latents", self.table), ("texts", self._texts))
        )

        marks = [repr(self.plan)] + [_marked(folder / f"{kind}.arrow") for kind in ("latents", "texts")]
        self.fingerprint = hashlib.sha256(repr(marks).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.table)

    def with_text(self) -> np.ndarray:
        """bool [N]: whether an example's caption was encoded, and not left out as one that does not fit."""
        wanted = hashes(self.table["caption"])
        place = np.searchsorted(self._captions, wanted)
        found = place < len(self._captions)
        found[found] = self._captions[place[found]] == wanted[found]
        return found

    def row(self, number: int) -> dict[str, Any]:
        """What is known of an example: `row` in the view, SHA-256 of its `caption`, `height` and `width` of its picture
        in full, `top` and `left` of the crop, and the side `held_out`."""
        return self.table.slice(number, 1).to_pylist()[0]

    def latents(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, float16 [h, w, c], before they are scaled. Raises `RejectError`."""
        moments = _array(self._latents, self.row(number))
        if moments.ndim != 4 or len(moments) != 2:
            raise RejectError("latents cannot be read")
        return moments[0], moments[1]

    def text(self, caption: str | bytes) -> dict[str, np.ndarray]:
        """What the text encoders gave for a caption, or for the caption of that SHA-256. Raises KeyError for others."""
        rows = self._rows_of(mark(caption) if isinstance(caption, str) else caption)
        if not rows:
            raise KeyError(caption)
        found = self._texts.slice(rows.start, len(rows)).to_pylist()
        return {row["name"]: _array(self._encodings, row) for row in found}

    def _rows_of(self, caption: bytes) -> range:
        """The rows of `texts.arrow`, which is in the order of its captions."""
        return range(*(int(np.searchsorted(self._captions, np.bytes_(caption), side)) for side in ("left", "right")))


def hashes(column: pa.ChunkedArray) -> np.ndarray:
    """SHA-256 [N] where they lie, if in one batch, as tables of this package are written; else a copy."""
    parts = [
        np.frombuffer(part.buffers()[1], "S32", len(part), 32 * part.offset) for part in column.chunks if len(part)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, "S32"), *parts])


def _marked(table: Path) -> str:
    if not table.exists():
        return ""
    with table.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan. Raises ValueError, naming the field, where it lacks one or has another kind of value."""
    number = lambda value: isinstance(value, int | float) and math.isfinite(value)
    side = lambda value: isinstance(value, int) and value > 0
    pairs = lambda value: all(isinstance(pair, list) and len(pair) == 2 and all(map(side, pair)) for pair in value)
    good = {
        "text": lambda text: text is None or isinstance(text, str),
        "autoencoder": lambda text: isinstance(text, str),
        "buckets": lambda shapes: isinstance(shapes, list) and bool(shapes) and pairs(shapes),
        "scaling": lambda scaling: (
            isinstance(scaling, dict)
            and all(
                isinstance(scaling.get(name), list) and all(map(number, scaling[name])) for name in ("shift", "scale")
            )
        ),
    }
    for field, fits in good.items():
        if field not in plan or not fits(plan[field]):
            raise ValueError(f"{PLAN}: {field} cannot be {plan.get(field)!r:.100}")
    return plan


def _read(folder: Path, name: str, schema: pa.Schema) -> pa.Table:
    path = folder / f"{name}.arrow"
    if wrong := check_seal(path):
        raise ValueError(f"{path.name} {wrong}")
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if table.schema != schema:
        raise ValueError(f"{path.name} has other columns, as of another version")
    table.validate(full=True)
    for column in schema.names:
        if table[column].null_count:
            raise ValueError(f"{path.name}: column {column} must have a value in every row")
    for column, least, most in (("shard", 0, 10**6), ("offset", 0, 2**62), ("size", 1, _MAX_SIZE)):
        values = table[column].to_numpy()
        if len(values) and not least <= values.min() <= values.max() <= most:
            raise ValueError(f"{path.name}: column {column} must be in {least}..{most}; got {values.max()}")
    return table


def _shards(table: pa.Table) -> int:
    return int(table["shard"].to_numpy().max(initial=-1)) + 1


def _array(shards: Shards, row: dict[str, Any]) -> np.ndarray:
    """An array of float16. Raises `RejectError`."""
    data = shards.read(row)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise RejectError("latents cannot be read") from error
    if array.dtype != np.float16:
        raise RejectError("latents cannot be read")
    return array
