"""Random damage to what `jdiff data` writes and reads: views, index parts, scores, encoded tables and side files.

Half of the damaged files get a digest that fits again, so that what lies behind it is reached. Each must be refused by
an error that names it, or be read in full: another exception, or a crash, is a fault. What DuckDB and Arrow do with a
damaged file happens in this process: a crash ends it, and the seed that was printed tells with what.
"""

import dataclasses
import io
import json
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jdiff.data import FolderSource, index
from jdiff.data.dedup import deduplicate
from jdiff.data.encode import LATENTS, PLAN, _write_table
from jdiff.data.encoded import Encoded
from jdiff.data.filter import Recipe, make_view
from jdiff.data.report import report
from jdiff.data.scorers import Sharpness
from jdiff.data.scores import score
from jdiff.data.sealed import _BLOCK, _MARK, seal
from jdiff.data.view import View
from jdiff.data.view_source import ViewSource

ROWS = 12


@dataclasses.dataclass(frozen=True)
class Case:
    """A damaged file, and what reads it. `sealed` says that it may be read as if nothing were wrong: its digest was
    made to fit, or files of its kind have none."""

    kind: str
    path: Path
    data: bytes
    read: Callable[[], Any]
    sealed: bool


class Files:
    """A folder with one good file of each kind, made once."""

    def __init__(self, folder: Path):
        self.folder, self.index = folder, folder / "index"
        image = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(image, "PNG")
        with tarfile.open(folder / "a.tar", "w") as tar:
            for n in range(ROWS):
                record = json.dumps({"url": f"https://a.org/{n}", "license": "x", "aesthetic": n}).encode()
                for kind, data in (("png", image.getvalue()), ("txt", b"a caption"), ("json", record)):
                    member = tarfile.TarInfo(f"{n:03}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        columns = {"key": [f"{n:03}" for n in range(ROWS)], "status": ["success"] * ROWS, "width": [8] * ROWS}
        pq.write_table(pa.table(columns), folder / "a.parquet")
        self.build(folder / "index")
        score(self.index, Sharpness())
        deduplicate(self.index)
        make_view(self.index, folder / "view.arrow", Recipe(weight="1 + aesthetic", tags="'a,b'"))
        self._encode(folder / "encoded")
        (folder / "images").mkdir()
        for n in range(ROWS):
            (folder / "images" / f"{n}.png").write_bytes(image.getvalue())
        names = [f"{n}.png" for n in range(ROWS)]
        pq.write_table(pa.table({"file_name": names, "text": names}), folder / "images" / "metadata.parquet")

    def build(self, out: Path) -> None:
        """Indexes the shard."""
        index.build([str(self.folder / "a.tar")], out, max_reject_rate=1, failed=True)

    def _encode(self, folder: Path) -> None:
        folder.mkdir()
        scaling = {"shift": [0.0], "scale": [1.0]}
        plan = {"text": None, "autoencoder": "x", "buckets": [[8, 8]], "scaling": scaling}
        (folder / PLAN).write_text(json.dumps(plan))
        rows = [(n, 0, 512, 100, bytes(32), bytes(32), 8, 8, 0, 0, False) for n in range(ROWS)]
        _write_table(folder / "latents.arrow", LATENTS, rows)

    def kinds(self) -> dict[str, tuple[Path, Callable[[], Any]]]:
        """By name: a file and what reads it."""
        shown, out = self.folder / "view.arrow", self.folder / "out.arrow"
        filtered = lambda: make_view(self.index, out, Recipe(where="not duplicate and sharpness >= 0"))
        (part,) = self.index.glob("*.parquet")
        return {
            "view": (shown, lambda: _read_view(shown)),
            "view of an index": (shown, lambda: report(self.index, shown)),
            "part": (part, filtered),
            "part in a report": (part, lambda: report(self.index)),
            "part to deduplicate": (part, lambda: deduplicate(self.index)),
            "score": (self.index / "scores" / "sharpness" / part.name, filtered),
            "duplicates": (self.index / "dedup" / "pictures.parquet", filtered),
            "latents": (
                self.folder / "encoded" / "latents.arrow",
                lambda: Encoded(self.folder / "encoded").table.to_pylist(),
            ),
            "plan": (self.folder / "encoded" / PLAN, lambda: Encoded(self.folder / "encoded").table.to_pylist()),
            "side table": (self.folder / "a.parquet", lambda: self.build(self.folder / "fresh")),
            "captions": (
                self.folder / "images" / "metadata.parquet",
                lambda: FolderSource(self.folder / "images", split="train", size=8),
            ),
        }


def _read_view(path: Path) -> None:
    view = View(path)
    view.rows(np.arange(len(view)))
    try:
        source = ViewSource(path, split="train", size=4)
    except ValueError as error:
        assert "none of them" in str(error), error
        return
    source[0]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bits turned, bytes replaced, or a stretch cut, zeroed or repeated."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        # The footers say where everything lies.
        near_end = rng.random() < 0.5 and len(changed) > 2000
        at = int(rng.integers(len(changed) - 2000 if near_end else 0, max(len(changed), 1))) if changed else 0
        length = int(rng.integers(1, 64))
        match int(rng.integers(6)):
            case 0 | 1 | 2 if changed:
                changed[at] ^= 1 << int(rng.integers(8))
            case 3:
                changed[at : at + length] = rng.bytes(length)
            case 4:
                changed[at : at + length] = bytes(length)
            case _ if rng.random() < 0.3:
                del changed[at : at + length * 30]
    return bytes(changed)


def cases(rng: np.random.Generator, files: Files) -> Iterator[Case]:
    """Damaged files, one after the other, without an end."""
    kinds = files.kinds()
    good = {name: path.read_bytes() for name, (path, _) in kinds.items()}
    while True:
        name = list(kinds)[int(rng.integers(len(kinds)))]
        path, read = kinds[name]
        data, sealed = good[name], False
        place = data.rfind(_MARK)
        if place >= 0 and rng.random() < 0.5:
            data = damaged(data[:place] + data[place + _BLOCK :], rng)
            scratch = files.folder / "scratch"
            scratch.write_bytes(data)
            try:
                seal(scratch)
            except AssertionError:
                continue
            data, sealed = scratch.read_bytes(), True
        else:
            data = damaged(data, rng)
        yield Case(name, path, data, read, sealed or place < 0)


def run(seconds: float, seed: int) -> dict[str, int]:
    """Counts of outcomes by kind of file. Raises AssertionError with the seed and the case for a fault."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        end = time.monotonic() + seconds
        for number, case in enumerate(cases(np.random.default_rng(seed), files)):
            if time.monotonic() > end:
                break
            before = case.path.read_bytes()
            case.path.write_bytes(case.data)
            start = time.monotonic()
            told = f"seed {seed}, case {number}: a damaged {case.kind}"
            try:
                case.read()
            except (ValueError, OSError) as error:
                assert isinstance(error, OSError) or not isinstance(error, UnicodeError), f"{told}: {error!r}"
                outcome = "refused"
            except Exception as error:
                raise AssertionError(f"{told} ended in {type(error).__name__}: {error}") from error
            else:
                outcome = "read"
                assert case.sealed or case.data == before, f"{told} was read in spite of its digest"
            finally:
                case.path.write_bytes(before)
                shutil.rmtree(files.folder / "fresh", ignore_errors=True)
            assert time.monotonic() - start < 20, f"{told} took {time.monotonic() - start:.0f} s"
            counts[f"{case.kind}: {outcome}"] += 1
    return dict(counts)


if __name__ == "__main__":
    print(run(float(sys.argv[1]), int(sys.argv[2])))
