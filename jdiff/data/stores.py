"""Stores of shards by URL: which schemes are read, and which package and extra each needs.

A list of shards may come from strangers. So a URL is of a store that the README names, of this process's memory, or of
a class that this process itself registered with fsspec; fsspec's own other schemes reach further (`github://`,
`ssh://`, `file://`), and chains of them (`simplecache::https://...`) further still.
"""

import re
from typing import Any

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::.*://)")
PACKAGES = {
    **dict.fromkeys(("http", "https"), ("aiohttp", "data")),
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "s3")),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "gs")),
    "memory": ("fsspec", "data"),
}
"""By scheme: the package that reads it, and the extra of jdiff that installs that."""


def is_url(shard: str) -> bool:
    """Whether a shard is in a store, and not a local path."""
    return _URL.match(shard) is not None


def check_url(shard: str) -> None:
    """Raises ValueError for a shard that is in no store which is read, or that needs a package which is missing."""
    match = _URL.match(shard)
    if match is None:
        return
    if "::" in shard:
        raise ValueError(f"shard {shard} is a chain of URLs (::), of which none is read; name the one store")
    fsspec = _package(shard)
    scheme = match[1].lower()
    own = fsspec.registry.keys() - fsspec.available_protocols()
    if scheme not in PACKAGES and scheme not in own:
        raise ValueError(f"shard {shard} must be a local path, or a URL of {', '.join(PACKAGES)}; got {scheme}://")


def store_of(shard: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises ValueError as `check_url` does."""
    check_url(shard)
    fsspec = _package(shard)
    try:
        return fsspec.core.url_to_fs(shard)
    except ImportError as error:
        raise missing(shard) from error


def _package(shard: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise ValueError(f"shard {shard} needs the package fsspec: pip install 'jdiff[data]'") from error
    return fsspec


def missing(shard: str) -> ValueError:
    """The error of a shard whose store's package is not installed."""
    match = _URL.match(shard)
    package, extra = PACKAGES.get(match[1].lower() if match else "", ("that reads its store", ""))
    install = f": pip install 'jdiff[{extra}]'" if extra else ""
    return ValueError(f"shard {shard} needs the package {package}{install}")
