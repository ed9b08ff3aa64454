"""SQL over an index, by DuckDB: one view, `examples`, that nothing can be written to and that reads nothing else.

What users write is one expression. It is parsed alone before it is put into a query, so parentheses, statements and
clauses cannot reach beyond it. Names of columns from files are quoted, and the files are named one by one: a path is
never a pattern.
"""

import collections
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from jdiff.data.parts import SCHEMA, Part
from jdiff.data.scores import check_name, scored
from jdiff.data.sealed import check_seal
from jdiff.json_files import parse_object

DEDUP = {
    "pictures": ("duplicate", "cluster"),
    "captions": ("caption_duplicate", "caption_cluster"),
    "embeddings": ("embedding_duplicate", "embedding_cluster"),
}
"""The columns that deduplication gives, by what is compared."""
RESERVED = (
    {name.lower() for name in SCHEMA.names} | {name for names in DEDUP.values() for name in names} | {"recaptioned"}
)
"""Columns that no scorer and no field of a record may have."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_SQL = {"number": "DOUBLE", "bool": "BOOLEAN"}


def check_expression(field: str, text: str) -> None:
    """Raises ValueError, naming the `field`, unless `text` is one expression of SQL and nothing else."""
    parse = lambda query: json.loads(
        duckdb.execute("SELECT json_serialize_sql(CAST(? AS VARCHAR))", [query]).fetchall()[0][0]
    )
    try:
        # Bare, so that a parenthesis closes none of the query's; in parentheses, so that no clause can follow it.
        bare, closed = parse(f"SELECT\n{text}\n"), parse(f"SELECT (\n{text}\n)")
    except duckdb.Error as error:
        raise ValueError(f"{field} {text!r} cannot be read as SQL: {first_line(error)}") from error
    for one in (bare, closed):
        if one["error"]:
            raise ValueError(
                f"{field} {text!r} must be one expression of SQL; {one['error_type']} error: "
                f"{(one.get('error_message') or ' ').splitlines()[0]}"
            )
    node = bare["statements"][0]["node"]
    if len(bare["statements"]) != 1 or node["type"] != "SELECT_NODE" or len(node["select_list"]) != 1:
        raise ValueError(f"{field} {text!r} must be one expression of SQL; it is more")


def dedup_file(index: Path, by: str) -> Path:
    """Where the duplicates of an index are written."""
    return index / "dedup" / f"{by}.parquet"


def dedup_of(index: Path, by: str, mark: str) -> dict[str, Any] | None:
    """What was found when the index with the fingerprint `mark` was deduplicated; None where it was not, or has changed
    since. Raises ValueError where the file is damaged."""
    path = dedup_file(index, by)
    if not path.exists():
        return None
    try:
        if wrong := check_seal(path):
            raise ValueError(f"it {wrong}")
        schema = pq.read_schema(path)
        found = parse_object((schema.metadata or {})[b"jdiff"], "its metadata")
        if missing := [name for name in ("shard", "key", "offset", *DEDUP[by]) if name not in schema.names]:
            raise ValueError(f"it lacks the columns {', '.join(missing)}")
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no duplicates, or is damaged: {error}; `jdiff data dedup` writes it") from error
    return found if found.get("index") == mark else None


def connect(
    index: Path,
    parts: dict[Path, Part],
    mark: str,
    spilled: Path,
    new_captions: pa.Table | None = None,
    *,
    memory: str,
    threads: int,
) -> "duckdb.DuckDBPyConnection":
    """DuckDB with the view `examples` over an index, with its new captions if any, and nothing else in reach.

    What does not fit into `memory` goes to the folder `spilled`, which is made if need be.
    """
    own, fields, joins, files = set(RESERVED), [], [], list(parts)
    for number, one in enumerate(one for one in scored(index, parts) if not one.missing):
        names = [name for name, kind in one.columns.items() if not pa.types.is_fixed_size_list(kind)]
        for name in names:
            _check_score(name, own, one.name)
            own.add(name.lower())
        fields += [f"x{number}.{_name(name)} AS {_name(name)}" for name in names]
        joins.append(f'LEFT JOIN read_parquet([{_literals(one.files)}]) x{number} USING (shard, key, "offset")')
        files += one.files
    fields += _record_fields(parts, own)
    for by, (duplicate, cluster) in DEDUP.items():
        if dedup_of(index, by, mark):
            table = dedup_file(index, by)
            fields += [f"coalesce({by}.{duplicate}, false) AS {duplicate}", f"{by}.{cluster} AS {cluster}"]
            joins.append(f'LEFT JOIN read_parquet([{_literals([table])}]) {by} USING (shard, key, "offset")')
            files.append(table)
    connection = duckdb.connect()
    replaced, recaptioned = "", "false"
    if new_captions is not None:
        connection.register("new_captions", new_captions)
        joins.append("LEFT JOIN new_captions c USING (shard, key)")
        replaced, recaptioned = " REPLACE (coalesce(c.caption, e.caption) AS caption)", "c.caption IS NOT NULL"
    connection.execute(f"SET memory_limit='{memory}'")
    connection.execute(f"SET threads={threads}")
    connection.execute(f"SET temp_directory={_literal(str(spilled.absolute()))}")
    connection.execute(f"SET allowed_paths=[{', '.join(_literal(str(file)) for file in files)}, {_literals(files)}]")
    connection.execute("SET enable_external_access=false")
    connection.execute("SET lock_configuration=true")
    selected = ", ".join([f"e.*{replaced}", f"{recaptioned} AS recaptioned", *fields])
    view = f"CREATE VIEW examples AS SELECT {selected} FROM read_parquet([{_literals(parts)}]) e {' '.join(joins)}"
    try:
        connection.execute(view)
    except duckdb.Error as error:
        raise ValueError(f"index {index} cannot be read: {first_line(error)}; index, or score, again") from error
    return connection


def _check_score(name: str, taken: set[str], scorer: str) -> None:
    """Raises ValueError for a scorer's column that SQL cannot name, or whose name is taken."""
    check_name(name, scorer)
    if name.lower() in taken:
        raise ValueError(f"scorer {scorer} gives a column {name!r}, which the index or another scorer has")


def _record_fields(parts: dict[Path, Part], own: set[str]) -> list[str]:
    """The fields of the examples' records, but for those whose names are taken."""
    kinds, fields = collections.defaultdict(set), []
    for part in parts.values():
        for name, kind in part.fields.items():
            kinds[name].add(kind)
    for name, found in sorted(kinds.items()):
        if _NAME.fullmatch(name) and name.lower() not in own:
            own.add(name.lower())
            text = f"json_extract_string(e.json, '$.{name}')"
            sql = _SQL.get(found.pop()) if len(found) == 1 else None
            fields.append(f"{f'TRY_CAST({text} AS {sql})' if sql else text} AS {_name(name)}")
    return fields


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _literals(files: Iterable[Path]) -> str:
    """Paths for `read_parquet`, which takes them for patterns."""
    return ", ".join(_literal(re.sub(r"[*?\[]", r"[\g<0>]", str(file))) for file in files)


def first_line(error: Exception) -> str:
    """Of an error of DuckDB, whose other lines repeat the query."""
    return str(error).split("\n")[0]
