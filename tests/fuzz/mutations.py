"""Changes of JSON values and of bytes, as strangers, editors and bad disks make them."""

import copy
import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64,
    10**400, "", "x", "1", "nan", "a/../b", "\0", "\ud800", "\u202e", "x" * 5000, [], [1], [[]], [None], ["x", 1], {},
    {"type": "x"}, {"type": []}, {"type": None}, {"": {}},
)  # fmt: skip


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values in a tree, that of the whole first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one to three changes: a value replaced, removed, added, swapped, or nested deeply."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(places(value))
        if not path:
            value = rng.choice(ODD) if rng.random() < 0.2 else value
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        kind, key = rng.random(), path[-1]
        if kind < 0.6:
            parent[key] = copy.deepcopy(rng.choice(ODD))
        elif kind < 0.7:
            del parent[key]
        elif kind < 0.8 and isinstance(parent, dict):
            parent[rng.choice(("type", "extra", "", "x\u202e"))] = parent[key]
        elif kind < 0.95:
            other: Any = value
            for step in rng.choice(places(value)):
                other = other[step]
            parent[key] = copy.deepcopy(other)
        else:
            for _ in range(50):
                parent[key] = [parent[key]]
    return value


def spoiled(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a flipped bit, cut, emptied, zeroed, doubled, or with others in their midst."""
    kind, at = rng.random(), rng.randrange(max(len(data), 1))
    if kind < 0.5 and data:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind < 0.65:
        return data[:at]
    if kind < 0.75:
        return data[:at] + bytes(len(data) - at)
    if kind < 0.85:
        return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
    deep = b'{"data":' + b"[" * 900 + b"]" * 900 + b"}"
    return rng.choice((b"", b"\xef\xbb\xbf" + data, data + data, b"[" * 100_000, deep, data.replace(b"\n", b"\r")))


def encoded(value: Any) -> bytes:
    """JSON as Python writes it; values that it refuses to write as an empty object."""
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return b"{}"
