"""What strangers wrote, on a terminal."""

import pytest

from jdiff.terminal import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, äöü 図 ✓", "plain, äöü 図 ✓"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("two\nlines\r\tand a tab", "two\\x0alines\\x0d\\x09and a tab"),
        ("\x9b31m C1", "\\x9b31m C1"),
        ("photo_\u202egpj.exe", "photo_\\u202egpj.exe"),
        ("a\u2066b\u200bc\u2028d", "a\\u2066b\\u200bc\\u2028d"),
        ("\udcff lone", "\\udcff lone"),
        ("\U000e0041 tag", "\\U000e0041 tag"),
        ("\x00\x7f", "\\x00\\x7f"),
        (3.5, "3.5"),
    ],
)
def test_control_characters_are_shown_and_not_sent(text, shown):
    assert printable(text) == shown
    assert printable(text).encode()


def test_length_and_encoding():
    assert printable("a" * 100, most=10) == "aaaaaaa..."
    assert printable("é✓", encoding="ascii") == "\\xe9\\u2713"
    assert printable("é✓", encoding="latin-1") == "é\\u2713"
