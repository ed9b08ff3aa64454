"""The files of a tokenizer, checked before the library builds one of them.

A tokenizer.json names steps that are run on every text. Those of CLIP and T5 are few; more of them, replacements that
make a text longer, and patterns that repeat what repeats can take longer than anyone waits, so they are refused.
"""

import base64
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jdiff.json_files import read_object

MOST_STEPS = 16  # of normalizers and of pre-tokenizers; CLIP and T5 have at most four
MOST_GROWTH = 16  # times as long as it was that a text may become by all replacements
MOST_TOKENS = 10**6
MOST_BYTES = 2**26
# A group that ends in a repetition and is repeated itself.
NESTED = re.compile(r"[+*}]\??\)\s*[+*{]")
STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def checked_tokenizer(path: Path) -> str:
    """The text of a tokenizer.json. Raises ValueError for one that may take forever."""
    fields = read_object(path)
    for part in STEPS:
        steps = list(_objects(fields.get(part)))
        kinds = [step.get("type") for step in steps if isinstance(step.get("type"), str)]
        if len(kinds) > MOST_STEPS:
            raise ValueError(f"{path}: its {part} has {len(kinds)} steps; CLIP's and T5's have fewer than {MOST_STEPS}")
        for step in steps:
            _check_step(path, part, step)
        growth = math.prod(max(1, _added(step)) for step in steps)
        if growth > MOST_GROWTH:
            raise ValueError(f"{path}: its {part} makes texts {min(growth, 10**9)} times as long as they are")
    model = fields.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not len(vocabulary) <= MOST_TOKENS:
        raise ValueError(f"{path} cannot be read: its model has no vocabulary of at most {MOST_TOKENS} tokens")
    # Truncation and padding are not its own here, and wrong ones would stop the library.
    return json.dumps({**fields, "truncation": None, "padding": None})


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """The objects inside a value, and it; without recursion, as they may be deep."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
        left.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def _check_step(path: Path, part: str, step: dict[str, Any]) -> None:
    for pattern in (step.get("Regex"), step.get("String")):
        if isinstance(pattern, str) and (len(pattern) > 500 or NESTED.search(pattern)):
            raise ValueError(f"{path}: its {part} has a pattern that may take forever: {pattern[:100]!r}")
    if "precompiled_charsmap" in step and not _is_map(step["precompiled_charsmap"]):
        raise ValueError(f"{path} cannot be read: its {part} has a precompiled_charsmap that is none")


def _added(step: dict[str, Any]) -> int:
    """Characters that a step puts in the place of others."""
    texts = [step.get("content"), step.get("prepend")] if step.get("type") in ("Replace", "Prepend") else []
    return max((len(text) for text in texts if isinstance(text, str)), default=0)


def _is_map(text: Any) -> bool:
    """Whether a text is a compiled map of characters: the size of a tree, the tree, and strings. The library stops the
    program's thread for another."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        return False
    size = int.from_bytes(data[:4], "little")
    return len(data) > 4 and size % 4 == 0 and 0 < size <= len(data) - 4


def read_vocabulary(path: Path) -> dict[str, int]:
    """A vocab.json. Raises ValueError unless it goes from tokens to ids."""
    words = read_object(path)
    wrong = next((f"{word!r}: {i!r}" for word, i in words.items() if type(i) is not int or not 0 <= i < 2**31), None)
    if wrong or not 0 < len(words) <= MOST_TOKENS:
        raise ValueError(f"{path} must go from 1 to {MOST_TOKENS} tokens to ids, got {wrong or len(words)}")
    return words


def read_merges(path: Path) -> list[tuple[str, str]]:
    """A merges.txt: two tokens a line, but for a first line with a version. Raises ValueError for another file."""
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MOST_BYTES} are read")
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start}") from error
    rows = [line.rstrip("\r").split(" ") for line in lines if line and not line.startswith("#version")]
    wrong = next((i for i, row in enumerate(rows) if len(row) != 2), None)
    if wrong is not None:
        raise ValueError(f"{path} must have two tokens a line, got {' '.join(rows[wrong])[:100]!r}")
    return [(row[0], row[1]) for row in rows]
