"""From words to dataclasses, by tyro: every field by its dotted name, wrong ones refused in one line."""

import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tyro

from jdiff.config import choices
from jdiff.terminal import printable

T = TypeVar("T")


def parse(cls: type[T], words: list[str], *, default: T | None = None, prog: str, description: str) -> T:
    """An instance of `cls` from the command line. Raises ValueError, in one line, for what is unknown or impossible."""
    errors = io.StringIO()
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                cls,
                args=words,
                prog=prog,
                description=description,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
                **extra,
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(f"{prog}: {_sentence(errors.getvalue())}") from None
        raise


def _sentence(box: str) -> str:
    """The text of tyro's framed message, without frame, hint and usage."""
    inside = [line for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    lines = [re.sub(r"[│─]", " ", line).strip() for line in inside]
    return " ".join(line for line in lines if line and not re.match(r"(For full helptext|Full helptext)", line))


Verbs = Mapping[str, tuple[type, Callable[[Any], None], str]]
"""Of a command: what each takes, what it does, and what that is in words."""


def chosen(prog: str, verbs: Verbs, words: list[str]) -> tuple[Callable[[Any], None], Any]:
    """What the verb in `words` does, and what it takes; help is printed. Raises ValueError as `parse` does."""
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: {prog} VERB ...\n\n" + "\n".join(f"  {name:7} {text}" for name, (_, _, text) in verbs.items()))
        print(f"\n`{prog} VERB --help` tells the rest.")
        sys.exit(0 if words else 2)
    if words[0] not in verbs:
        raise ValueError(f"there is no verb {words[0]!r} of {prog}; there are {', '.join(verbs)}")
    cls, act, text = verbs[words[0]]
    return act, parse(cls, words[1:], prog=f"{prog} {words[0]}", description=f"{text[0].upper()}{text[1:]}.")


def show(arguments: Any, figures: Any, *lines: str) -> None:
    """Prints figures as JSON where that is asked for, else the lines, whoever wrote what they hold."""
    shown = (printable(line, encoding=sys.stdout.encoding) for line in lines)
    print(json.dumps(figures) if arguments.json else "\n".join(shown))


def choose(experiment: Any, words: list[str]) -> tuple[Any, list[str]]:
    """Takes `--process EDM` and the like out of `words`: where a field may hold one of several classes, its bare name
    chooses the class, with that class's defaults. Raises ValueError for a class that does not exist."""
    rest, chosen = [], {}
    words = [part for word in words for part in (word.split("=", 1) if re.match(r"--[a-z_]+=", word) else [word])]
    position = 0
    while position < len(words):
        word = words[position]
        field = word[2:].replace("-", "_") if word.startswith("--") else ""
        options = choices(type(experiment), field) if hasattr(experiment, field) else {}
        if not options:
            rest.append(word)
            position += 1
            continue
        name = words[position + 1] if position + 1 < len(words) else "nothing"
        if name not in options:
            raise ValueError(f"--{field} must be one of {', '.join(options)}, got {name}")
        if not isinstance(getattr(experiment, field), options[name]):
            chosen[field] = options[name]()
        position += 2
    return dataclasses.replace(experiment, **chosen), rest
