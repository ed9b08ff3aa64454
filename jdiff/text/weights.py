"""Weights of words in a prompt, as the AUTOMATIC1111 web UI writes and applies them.

    (word) = 1.1    ((word)) = 1.1^2    [word] = 1 / 1.1    (word:1.3) = 1.3    \\( = the bracket itself

Brackets nest and their weights multiply. With z the embeddings [N, width] of a prompt and w the weights of its tokens,

    z' = w z * mean(z) / mean(w z),

both means over all entries of a piece of the prompt: what is stressed stands out, and the whole keeps its mean.

BREAK begins another piece. What the web UI and its extensions make otherwise of a prompt (AND, [a|b], [a:b:n],
<lora:...>, __wildcards__) is refused, rather than read as text: a backslash before it makes it text.
"""

import math
import re
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

ROUND = 1.1
"""The weight of round brackets; square ones have its inverse."""
_PAIRS = {")": "(", "]": "["}
_LAST = re.compile(
    r":([^()\[\]:\\]*)([)\]])"
)  # a colon, what stands between it and the end of its bracket, and the end
_NUMBER = re.compile(r"[-+.,\d][-+.,\deE\s]*|")  # what is meant as a number, right or wrong


_BREAK = re.compile(r"\s*\bBREAK\b\s*")
# How what is not read begins, and what it is.
_NOT_READ = (
    (re.compile(r"\bAND\b"), "which composes prompts"),
    (re.compile(r"<(lora|lyco|hypernet|ti|embedding):[^<>]{0,500}>"), "which names a file of weights"),
    (re.compile(r"(?<!\w)__[A-Za-z0-9][\w/.*-]{0,200}?__(?!\w)"), "which is a wildcard"),
)


class Segment(NamedTuple):
    """A part of a prompt; an empty one is where BREAK begins another piece."""

    text: str
    weight: float


def parse(prompt: str) -> list[Segment]:
    """The parts of a prompt without its brackets and backslashes; neighbours differ in weight, and none but a BREAK is
    empty.

    A colon before anything but a number is text, as is one after a backslash. Raises ValueError that names the prompt
    and the place, for a bracket that is not closed or not opened, a weight that is not a finite number or stands in
    square brackets, a backslash at the end, and what the web UI would not read as text.
    """
    letters: list[str] = []
    weights: list[float] = []
    opened: list[tuple[str, int, int]] = []  # the bracket, its place in the prompt, and in `letters`
    i = 0
    while i < len(prompt):
        letter, step, weight = prompt[i], 1, None
        # A run of blanks is looked at once.
        begins = letter == "B" or (letter.isspace() and not prompt[i - 1 : i].isspace())
        if begins and (match := _BREAK.match(prompt, i)):
            letters.append("")
            weights.append(1.0)
            i = match.end()
            continue
        _check_read(prompt, i, letter, opened[-1][0] if opened else "")
        if letter == ":" and opened:
            weight, step = _explicit(prompt, i, opened[-1][0])
        if letter == "\\":
            if i + 1 == len(prompt):
                raise _malformed(prompt, i, "a backslash that escapes nothing; two of them are one")
            letters.append(prompt[i + 1])
            weights.append(1.0)
            step = 2
        elif letter in "([":
            opened.append((letter, i, len(letters)))
        elif letter in ")]" or weight is not None:
            if weight is None and (not opened or opened[-1][0] != _PAIRS[letter]):
                raise _malformed(prompt, i, f"{letter} closes nothing; \\{letter} is the bracket itself")
            bracket, _, start = opened.pop()
            factor = weight if weight is not None else ROUND if bracket == "(" else 1 / ROUND
            weights[start:] = [one * factor for one in weights[start:]]
        else:
            letters.append(letter)
            weights.append(1.0)
        i += step
    if opened:
        bracket, place, _ = opened[-1]
        raise _malformed(prompt, place, f"{bracket} is not closed; \\{bracket} is the bracket itself")
    return _merged(letters, weights)


def _check_read(prompt: str, i: int, letter: str, bracket: str) -> None:
    """Raises ValueError for what the web UI would not read as text, at character `i` inside a bracket."""
    if letter == "|" and bracket == "[":
        raise _malformed(prompt, i, "[a|b], which alternates between steps, is not read; \\| is the bar itself")
    if letter not in "A<_":
        return
    for pattern, what in _NOT_READ:
        if match := pattern.match(prompt, i):
            raise _malformed(prompt, i, f"{match[0]}, {what}, is not read; \\{match[0]} is text")


def _explicit(prompt: str, i: int, bracket: str) -> tuple[float | None, int]:
    """The weight that the colon at `i` starts, None if it starts none, and the length of what was read."""
    last = _LAST.match(prompt, i)
    if last is None or _PAIRS[last[2]] != bracket or not _NUMBER.fullmatch(last[1].strip()):
        return None, 1
    if bracket == "[":
        raise _malformed(
            prompt,
            i,
            f"the weight {last[1]!r} in square brackets, which the web UI reads as the step at which a prompt changes "
            "and which is not read; (text:1.3) has a weight, \\: is a colon",
        )
    try:
        weight = float(last[1])
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise _malformed(prompt, i, f"the weight {last[1]!r} is not a number; (text:1.3) has one, \\: is a colon")
    return weight, len(last[0])


def _malformed(prompt: str, place: int, what: str) -> ValueError:
    return ValueError(f"prompt {prompt!r}, at character {place}: {what}")


def _merged(letters: list[str], weights: list[float]) -> list[Segment]:
    # A BREAK is of its own, whatever brackets are around it; its number keeps it apart from another one.
    marks = [(1.0, i) if letter == "" else (weights[i], -1) for i, letter in enumerate(letters)]
    groups = groupby(zip(letters, marks, strict=True), key=lambda pair: pair[1])
    return [Segment("".join(letter for letter, _ in group), weight) for (weight, _), group in groups]


def emphasized(embeddings: Any, weights: Any) -> Any:
    """Embeddings [..., N, width] times weights [..., N], each prompt scaled so that its mean is what it was.

    NumPy's arrays or JAX's, also traced; in the dtype of `embeddings`, computed in float32 at least. Where the weighted
    mean is 0 there is no such scale, and none is applied.
    """
    xp = embeddings.__array_namespace__()
    wide = embeddings.astype(np.promote_types(embeddings.dtype, np.float32))
    weighted = wide * weights.astype(wide.dtype)[..., None]
    before, after = (part.mean(axis=(-2, -1), keepdims=True) for part in (wide, weighted))
    zero = after == 0
    scale = xp.where(zero, xp.ones_like(after), before / xp.where(zero, xp.ones_like(after), after))
    return (weighted * scale).astype(embeddings.dtype)
