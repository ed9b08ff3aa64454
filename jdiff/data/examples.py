"""Members of a shard to examples: an image, a caption and a record, or the reason why there is none.

The layout is WebDataset's and img2dataset's: members that follow each other and share a key, the name up to the first
dot of its last part, are one example: `000012.jpg`, `000012.txt`, `000012.json`. The caption is the `.txt`, else the
"caption" of the record. Every example that a shard begins is yielded, so that what is used and what is rejected add up
to what was seen. Pickles are never opened, nor is any other kind of member.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from jdiff.data.tar import Member, Read, ShardError, members

IMAGES = {"jpg", "jpeg", "png", "webp"}
PICKLES = {"pkl", "pickle", "pyd", "pt", "pth", "joblib"}
MAX_IMAGE = 2**27
MAX_CAPTION = 2**14
MAX_RECORD = 2**20


@dataclasses.dataclass(kw_only=True, slots=True)
class Example:
    """One example as the headers give it: its parts by kind ("image", "txt", "json"), and why it is rejected."""

    key: str
    parts: dict[str, Member]
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that are known without a part, as from a table beside the shard."""
    fault: str | None = None


def examples(read: Read, length: int) -> Iterator[Example]:
    """The examples of a shard in order. What ends a shard early is an example with an empty key and that fault."""
    seen: set[str] = set()
    current: Example | None = None
    try:
        for member in members(read, length):
            key, kind = split_name(member.name)
            if current is None or key != current.key:
                if current is not None:
                    yield _finished(current)
                current = Example(key=key, parts={}, fault="duplicate key" if key in seen else None)
                seen.add(key)
            _add(current, kind, member)
    except ShardError as damage:
        if current is not None and damage.complete:
            yield _finished(current)
            current = None
        # The last example may be missing members that came after the damage.
        if current is not None:
            current.fault = current.fault or str(damage)
        else:
            current = Example(key="", parts={}, fault=str(damage))
    if current is not None:
        yield _finished(current)
    elif not seen:
        yield Example(key="", parts={}, fault="empty shard")


def split_name(name: str) -> tuple[str, str]:
    """Key and kind of a member: folders and the last part up to its first dot, and what follows, in lower case."""
    folder, slash, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return folder + slash + stem, kind.lower()


def _add(example: Example, kind: str, member: Member) -> None:
    place = "image" if kind in IMAGES else kind
    if member.fault:
        example.fault = example.fault or member.fault
    elif kind in PICKLES:
        example.fault = example.fault or "pickle"
    elif place in example.parts:
        example.fault = example.fault or "duplicate member"
    elif place in ("image", "txt", "json"):
        example.parts[place] = member


def _finished(example: Example) -> Example:
    if example.fault is None and "image" not in example.parts:
        example.fault = "no image"
    if example.fault is None and example.parts["image"].size > MAX_IMAGE:
        example.fault = "image file is too large"
    return example


def record_of(data: bytes) -> tuple[dict[str, Any], str | None]:
    """The fields of a `.json` member, and the reason why it is rejected or None."""
    if len(data) > MAX_RECORD:
        return {}, "json is too large"
    try:
        # NaN is no JSON, but pandas writes it where there is no value.
        record = json.loads(data, parse_constant=lambda _: None)
        # What no table can hold: lone surrogates, and numbers beyond any type.
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return {}, "json cannot be read"
    if not isinstance(record, dict):
        return {}, "json holds no fields"
    return record, None


def caption_of(text: bytes | None, record: dict[str, Any]) -> tuple[str, str | None]:
    """The caption, from the `.txt` where there is one, and the reason why it is rejected or None."""
    if text is not None:
        if len(text) > MAX_CAPTION:
            return "", "caption is too long"
        try:
            caption = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            return "", "caption is not UTF-8"
    else:
        caption = record.get("caption")
        if not isinstance(caption, str):
            return "", "no caption"
        if len(caption.encode()) > MAX_CAPTION:
            return "", "caption is too long"
    if "\0" in caption:
        return "", "caption has a NUL"
    caption = caption.strip()
    return caption, None if caption else "empty caption"
