"""Latents and text embeddings that `jdiff data encode` wrote, by number and by caption."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from jdiff.data.encode import LATENTS, PLAN, TEXTS, mark
from jdiff.data.shards import Shards


class Encoded:
    """A folder that `jdiff data encode` finished: `plan` says what it was made from.

    `table` has a row for each example, `fingerprint` is the SHA-256 of what was written.

    Raises ValueError where it was not finished. Reading raises `RejectError` where a shard is gone or has changed.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        try:
            self.plan: dict[str, Any] = json.loads((folder / PLAN).read_text())
            self.table = _read(folder / "latents.arrow", LATENTS)
            self._texts = _read(folder / "texts.arrow", TEXTS) if self.plan["text"] else TEXTS.empty_table()
        except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
            raise ValueError(f"{folder} is not encoded, or not to the end; `jdiff data encode` goes on") from error
        # In their order, and mapped as the tables are: looked up in the file.
        self._captions = hashes(self._texts["caption"])
        count = lambda kind: len(list((folder / kind).glob("*.tar")))
        self._latents, self._encodings = (
            Shards([(str(folder / kind / f"{number:05}.tar"), "") for number in range(count(kind))])
            for kind in ("latents", "texts")
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
        """Mean and standard deviation, float16 [h, w, c], before they are scaled."""
        mean, std = _array(self._latents, self.row(number))
        return mean, std

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


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if table.schema != schema:
        raise ValueError("it has other columns, as of another version")
    return table


def _array(shards: Shards, row: dict[str, Any]) -> np.ndarray:
    return np.load(io.BytesIO(shards.read(row | {"sha256": None})), allow_pickle=False)
