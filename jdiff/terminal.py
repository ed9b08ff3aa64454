"""Text of strangers on a terminal: control characters and what reorders text are shown as escapes, never sent.

Unicode's categories Cc (control), Cf (format: bidirectional overrides, zero-width), Cs (surrogates), Co and Cn, and the
line and paragraph separators, are written as `\\xHH` or `\\uHHHH`, as is what the terminal's encoding lacks.
"""

import unicodedata

_SENT = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: object, *, most: int | None = None, encoding: str | None = None) -> str:
    """`text` in one line that shows what it holds; at most `most` characters of it, and in `encoding` where given."""
    shown = str(text)
    if most is not None and len(shown) > most:
        shown = shown[: most - 3] + "..."
    if not shown.isascii() or not shown.isprintable():
        shown = "".join(_escaped(letter) for letter in shown)
    return shown.encode(encoding, "backslashreplace").decode(encoding) if encoding else shown


def _escaped(letter: str) -> str:
    if unicodedata.category(letter) not in _SENT:
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
