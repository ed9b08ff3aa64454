"""Prompts as ids of tokens, framed and padded as encoders of prompts want them; nothing is cut off.

CLIP (2103.00020): begin, tokens, end, padding. T5 (1910.10683): tokens, end, padding. A prompt of more tokens than the
encoder takes is refused, or becomes several pieces, each framed, whose embeddings the caller concatenates.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jdiff.text.weights import Segment, parse

PLAIN = {"add_special_tokens": False}
LONG = ("refuse", "chunk")


class Tokens(NamedTuple):
    """Of B prompts: arrays [B, N], or [B, pieces, N] of a tokenizer that was asked for pieces; N is its limit."""

    ids: np.ndarray
    """int32."""
    mask: np.ndarray
    """bool: where there is a token, also begin and end; nowhere in a piece that a prompt does not have."""
    weights: np.ndarray
    """float32: of each token; 1 at begin, end and padding, and everywhere unless weights were asked for."""


def built(what: str, build: Callable[[], Any]) -> Any:
    """What the library makes. Raises ValueError for its errors, and for its panics, which are no exceptions to it."""
    try:
        return build()
    except Exception as error:  # the library raises this class and no other
        raise ValueError(f"{what} cannot be read: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what} cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """(prompts) -> Tokens. Raises ValueError for a limit that leaves no place for a token."""

    backend: tokenizers.Tokenizer
    limit: int
    """Tokens that the encoder takes, with begin and end."""
    begin: int | None
    """None where prompts have no begin."""
    end: int
    pad: int

    def __post_init__(self):
        if self.room < 1:
            raise ValueError(f"limit: {self.limit} leaves no place for a token beside begin and end")

    @property
    def room(self) -> int:
        """Tokens of a prompt that the encoder takes."""
        return self.limit - (1 if self.begin is None else 2)

    def __call__(self, prompts: Sequence[str], *, long: str = "refuse", weights: bool = False) -> Tokens:
        """The tokens of prompts; with `weights`, of prompts that are written as `jdiff.text.parse` reads them.

        Weights change no token: a token has the weight of its last character. With long="chunk" there are as many
        pieces as the longest prompt needs, and what a shorter one lacks is an empty piece; where weights are read, a
        BREAK also ends a piece. Raises ValueError for a prompt of too many tokens or with a BREAK with long="refuse",
        and for one that `parse` does not read.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts: {prompts!r} is one string, not a list of them")
        if long not in LONG:
            raise ValueError(f"long: {long!r} is not one of {', '.join(LONG)}")
        rows = [self._pieces(f"prompts[{i}]", prompt, long, weights) for i, prompt in enumerate(prompts)]
        most = max(map(len, rows), default=1)
        absent = self._framed([], [])
        absent = absent._replace(mask=np.zeros_like(absent.mask))
        rows = [pieces + [absent] * (most - len(pieces)) for pieces in rows]
        fields = zip(*(piece for pieces in rows for piece in pieces), strict=True)
        shape = (len(rows), self.limit) if long == "refuse" else (len(rows), most, self.limit)
        if not rows:
            return Tokens(*(np.zeros(shape, part.dtype) for part in absent))
        return Tokens(*(np.stack(parts).reshape(shape) for parts in fields))

    def _pieces(self, name: str, prompt: str, long: str, weights: bool) -> list[Tokens]:
        if not isinstance(prompt, str) or any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise ValueError(f"{name}: {prompt!r} is not a string of Unicode characters")
        parts: list[list[Segment]] = [[]]
        for segment in parse(prompt) if weights else [Segment(prompt, 1.0)]:
            # An empty segment is a BREAK.
            parts = [*parts[:-1], [*parts[-1], segment]] if segment.text or not weights else [*parts, []]
        if len(parts) > 1 and long == "refuse":
            raise ValueError(f'{name}: BREAK begins another piece; long="chunk" reads several: {prompt!r}')
        return [piece for part in parts for piece in self._framed_part(name, prompt, part, long)]

    def _framed_part(self, name: str, prompt: str, segments: list[Segment], long: str) -> list[Tokens]:
        """The pieces of what no BREAK divides."""
        encoding = built(name, lambda: self.backend.encode("".join(part.text for part in segments), **PLAIN))
        ids, count = encoding.ids, len(encoding.ids)
        if long == "refuse" and count > self.room:
            raise ValueError(
                f"{name}: {count} tokens, and the encoder takes {self.room} of a prompt ({self.limit} with begin and "
                f'end); long="chunk" makes pieces of it: {prompt!r}'
            )
        bounds = list(accumulate(len(part.text) for part in segments))
        last = [max(start, end - 1) for start, end in encoding.offsets]
        segments = segments or [Segment("", 1.0)]
        each = [segments[min(bisect_right(bounds, place), len(segments) - 1)].weight for place in last]
        starts = range(0, max(count, 1), self.room)
        return [self._framed(ids[i : i + self.room], each[i : i + self.room]) for i in starts]

    def _framed(self, tokens: list[int], weights: list[float]) -> Tokens:
        """One piece [N]."""
        begin = [] if self.begin is None else [self.begin]
        framed = [*begin, *tokens, self.end]
        blank = self.limit - len(framed)
        each = [1.0] * len(begin) + weights + [1.0] * (1 + blank)
        ids = np.array(framed + [self.pad] * blank, np.int32)
        return Tokens(ids, np.arange(self.limit) < len(framed), np.array(each, np.float32))
