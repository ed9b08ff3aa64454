"""Captions that a captioning model wrote, on their way into a view.

The model reads the images of a view, however it likes, and writes one Parquet file: `shard` as the index names it,
`key`, and `caption`. What becomes of that is recorded with the view, by the file's SHA-256.
"""

import hashlib
from pathlib import Path

import pyarrow as pa

from jdiff.data.side_files import read_parquet

_COLUMNS = ("shard", "key", "caption")


def read_captions(path: Path) -> tuple[pa.Table, str]:
    """The columns `shard`, `key` and `caption` of a file, and its SHA-256.

    Raises ValueError, naming the file, where it cannot be read, lacks a column, or has two captions for an example.
    """
    try:
        data = path.read_bytes()
        table, mark = read_parquet(data, None), hashlib.sha256(data).hexdigest()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise ValueError(f"captions {path} must be a Parquet file: {error}") from error
    texts = {
        field.name for field in table.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    }
    if missing := [name for name in _COLUMNS if name not in texts]:
        raise ValueError(
            f"captions {path} must have the columns {', '.join(_COLUMNS)}, of text; it lacks {', '.join(missing)} "
            f"among {', '.join(table.schema.names) or 'none'}"
        )
    table = table.select(_COLUMNS)
    counts = table.group_by(["shard", "key"]).aggregate([([], "count_all")])
    twice = counts.filter(pa.array(counts["count_all"].to_numpy() > 1))
    if len(twice):
        row = twice.slice(0, 1).to_pylist()[0]
        raise ValueError(f"captions {path} must have one caption an example; {row['shard']}, {row['key']} has more")
    return table, mark
