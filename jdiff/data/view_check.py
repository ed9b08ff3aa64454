"""Checks of a view's rows and metadata: whoever wrote the file, training reads what it says."""

import sys
from typing import Any

import numpy as np
import pyarrow as pa

from jdiff.data.limits import MAX_FILE, MAX_PIXELS, MAX_SIDE
from jdiff.data.stores import check_url, is_url

_NEVER_NULL = ("shard", "key", "offset", "size", "width", "height", "caption", "held_out")
_SPANS = {
    "offset": (0, 2**62),
    "size": (1, MAX_FILE),
    "width": (1, MAX_SIDE),
    "height": (1, MAX_SIDE),
    "weight": (0, sys.float_info.max),
}


def check_rows(batch: pa.RecordBatch, shards: int) -> None:
    """Raises ValueError, naming the column, where a value is missing, damaged or out of range."""
    batch.validate(full=True)
    if not batch.num_rows:
        return
    for name in _NEVER_NULL:
        if batch.column(name).null_count:
            raise ValueError(f"column {name} must have a value in every row; it lacks {batch.column(name).null_count}")
    values = {name: batch.column(name).drop_null().to_numpy() for name in ("shard", *_SPANS)}
    for name, (least, most) in (_SPANS | {"shard": (0, shards - 1)}).items():
        found = values[name]
        if len(found) and not (found.min() >= least and found.max() <= most):
            raise ValueError(f"column {name} must be in {least}..{most}; it has {found.min()} and {found.max()}")
    if len(values["weight"]) not in (0, batch.num_rows):
        raise ValueError("column weight must have a value in every row or in none")
    pixels = values["width"].astype(np.int64) * values["height"]
    if pixels.max() > MAX_PIXELS:
        raise ValueError(f"width times height must be at most {MAX_PIXELS}; it is {pixels.max()}")
    tags = batch.column("tags")
    if tags.flatten().null_count:
        raise ValueError("column tags must hold texts; it has a null among them")


def checked_shards(shards: Any) -> list[tuple[str, str]]:
    """Names and stamps of the shards. Raises ValueError where they are not texts, or a name is of no store or path."""
    good = isinstance(shards, list) and all(
        isinstance(shard, list) and len(shard) == 2 and all(isinstance(text, str) for text in shard) for shard in shards
    )
    if not good:
        raise ValueError("its shards must be pairs of texts: name and stamp")
    for name, _ in shards:
        if not is_url(name) and (not name.startswith("/") or "\0" in name):
            raise ValueError(f"shard {name!r} must be a path from the root on, or a URL")
        check_url(name)
    return [(name, stamp) for name, stamp in shards]
