"""Which OpenMoji drawings form a subset, and the class of each: ordered tables over code points and names.

- "people": single adults, head and shoulders, one size and place on the canvas; class = gender and skin tone.
- "faces": round yellow faces, cat faces, and other heads seen from the front.
- "all": every named drawing; class = the first row of `KINDS` that it matches.

The tables are checked against the drawings by tests: every row matches something, and every class has drawings on the
training side of the split.
"""

import functools
import re
from typing import Literal

from jdiff.data.drawings import TONES, Drawing

SubsetName = Literal["people", "faces", "all"]

# Bases of portraits. Left out, because they would teach another picture: full bodies, couples and families, children
# (whom "man" and "woman" would misname), bowing, haircuts and facepalms (the face is hidden or off centre), someone
# feeding a baby (two people), the skullcap (a head twice as large), genies and zombies (no skin tone of their own),
# and whoever needs a wider square, for a tool, a tall hat, a blackboard or an arm held out: it would make every other
# face smaller.
_PERSON_WITH = "1F384 1F393 1F52C 1F680 1F9B0 1F9B1 1F9B2 1F9B3 2695 2708"
_PERSON = (
    "1F9D1 1F46E 1F470 1F471 1F473 1F477 1F486 1F575 1F645 1F646 1F64D 1F64E 1F935 1F9B8 1F9B9 1F9CF 1F9D3 "
    "1F9D4 1F9D5 1F9D6 1F9D9 1F9DB 1F9DD"
)
_PORTRAITS = frozenset([*(f"1F9D1-{sign}" for sign in _PERSON_WITH.split()), *_PERSON.split()])

# (kind, code points, names): a drawing is of the first kind whose code points, written as "A B-C", hold the first of
# its key, or whose pattern is found in its name.
KINDS: tuple[tuple[str, str, str], ...] = (
    ("flag", "1F1E6-1F1FF 1F3F3 1F3F4 1F38C 1F3C1 1F6A9", ""),
    ("cat", "", r"\bcat\b"),
    ("smiley",
     "1F47F 1F600-1F637 1F641-1F644 1F910-1F915 1F917 1F920-1F925 1F927-1F92F 1F970-1F976 1F978-1F97A 1F9D0 "
     "1FAE0-1FAE5 1FAE8-1FAEA 2639 263A", ""),
    ("creature", "1F479-1F47B 1F47D 1F47E 1F480 1F4A9 1F916 1F9CC 1FAC8 1F409 1F432", ""),
    ("group", "1F46A-1F46D 1F465 1FAC2", r"^family|^couple|^kiss(?! mark|ing)|holding hands|bunny ears|wrestling"),
    ("sport",
     "1F3C2-1F3C4 1F3C7 1F3CA-1F3CC 1F6A3 1F6B4 1F6B5 1F938 1F939 1F93A 1F93D 1F93E 1F9D7 26F7 26F9 1F3AF 1F3B1 "
     "1F3B3 1F3BD-1F3C0 1F3C5 1F3C6 1F3C8 1F3C9 1F3CF-1F3D3 1F3F8 1F3F9 1F93F 1F945-1F94F 26BD 26BE 26F3 26F8 "
     "1F6F7 1F6F9 1F6FC 1FA80 1FA81 1FA83 1F94A 1F94B 1F3A3", ""),
    ("person",
     "1F385 1F464 1F466-1F469 1F46E 1F470-1F478 1F47C 1F481-1F483 1F486 1F487 1F574 1F575 1F57A 1F5E3 1F645-1F647 "
     "1F64B 1F64D 1F64E 1F6B6 1F6C0 1F6CC 1F926 1F930 1F931 1F934-1F937 1F977 1F9B8 1F9B9 1F9CD-1F9CF 1F9D1-1F9DF "
     "1FAC3-1FAC5", ""),
    ("hand", "",
     r"\b(hands?|fingers?|fist|thumbs|index pointing|vulcan salute|sign of the horns|love-you gesture|"
     r"selfie|nail polish|palms up|handshake)\b(?! (fan|with))|hand with"),
    ("body", "1F440-1F445 1F463 1F48B 1F4AA 1F9B0-1F9B7 1F9BB 1F9BE 1F9BF 1F9E0 1FAC0 1FAC1 1FAC6 1FAE6", ""),
    ("heart", "1F48C", r"\bhearts?\b"),
    ("clock", "231A 231B 23F0-23F3 1F570", r"o.clock|-thirty"),
    ("animal",
     "1F400-1F43F 1F54A 1F577 1F578 1F648-1F64A 1F980-1F9AE 1FAB0-1FAB3 1FAB6 1FAB8-1FABA 1FABC 1FABD 1FABF "
     "1FACD-1FACF", ""),
    ("plant",
     "1F331-1F335 1F337-1F33C 1F33E-1F344 1F490 1F940 1FAB4 1FAB5 1FAB7 1FABB 1FABE 2618 1F4AE 1F38B 1F384", ""),
    ("drink",
     "1F375-1F379 1F37A 1F37B 1F37C 1F37E 1F942 1F943 1F95B 1F964 1F9C3 1F9C9 1F9CB 1FAD6 1FAD7 2615 1F376", ""),
    ("food",
     "1F32D-1F330 1F336 1F33D 1F345-1F374 1F37D 1F37F 1F382 1F950-1F96F 1F9C0-1F9C8 1F9CA 1FAD0-1FADC 1F944", ""),
    ("sky",
     "1F300 1F301 1F308 1F30A 1F30C-1F320 1F324-1F32C 1F525 1FA90 2600 2601 2603 2604 26C4 26C5 26C8 26A1 2744 "
     "2B50 1F4A7 1F4A6 1F4AB 1F30D-1F30F 2728", ""),
    ("place",
     "1F303-1F307 1F309 1F30B 1F3A0-1F3A2 1F3AA 1F3D4-1F3DF 1F3E0-1F3E6 1F3E8-1F3ED 1F3EF 1F3F0 1F492 1F54B-1F54D "
     "1F5FA-1F5FF 1F6D5 1F6D6 1F6D8 1F6DD 26E9 26EA 26F0-26F2 26FA 2668", ""),
    ("vehicle",
     "1F680-1F6A4 1F6B2 1F6E5 1F6E9-1F6EC 1F6F0 1F6F3-1F6F6 1F6F8 1F6FA 1F6FB 1F9BC 1F9BD 1F3CD 1F3CE 26F4 26F5 "
     "2708 2693 1F6DE 1F6DF 1FA82", ""),
    ("clothes",
     "1F392 1F393 1F3A9 1F451-1F462 1F45B-1F45D 1F484 1F48D 1F576 1F97B-1F97F 1F9BA 1F9E2-1F9E6 1FA70-1FA74 26D1 "
     "1FA96 1FAAD 1FAAE", ""),
    ("music",
     "1F399-1F39B 1F3A4 1F3A7 1F3B5-1F3BC 1F941 1FA87-1FA8A 1FA95 1FA97 1FA98 1F514 1F515 1F4EF 1F507-1F50A 1F4E2 "
     "1F4E3", ""),
    ("tool",
     "1F526-1F52B 1F52C 1F52D 1F58A-1F58D 1F5DC 1F5E1 1F6E0 1F6E1 1F9AF 1F9F0-1F9F2 1F9F5-1F9F7 1F9F9 1FA8F "
     "1FA92-1FA94 1FA9A-1FA9D 1FAA0 1FAA1 1FAA3 1FAA4 1FAA5 2692 2694 2699 26CF 2702 270F 2712 1FA93 1F489 1FA7A "
     "1F511 1F5DD 1F512 1F513 1F50F 1F510 26D3 1F4CC-1F4D0 1F587 1FA9B", ""),
    ("paper",
     "1F4B3-1F4B9 1F4C1-1F4CB 1F4D1-1F4DD 1F4E4-1F4EE 1F4F0 1F516 1F5C2-1F5C4 1F5D2 1F5D3 1F5DE 1F5F3 1F9E7 1F9FE "
     "2709 1F3AB 1F39F 1FAAA 1FAA7 1F5BC", ""),
    ("device",
     "1F4BB 1F4BD-1F4C0 1F4DE-1F4E1 1F4F1 1F4F2 1F4F7-1F4FD 1F50B 1F50C 1F579 1F5A5 1F5A8 1F5B1 1F5B2 1FAAB 260E "
     "2328 1F39E 1F3A5 1F3AC 1F3AE 1F4A1 1F4FA", ""),
    ("keycap",
     "23 2A 30-39 1F51F 1F520-1F524 1F170-1F19A 1F201-1F251 3297 3299 24C2 2139 A9 AE 2122 1F4AF 1F4B2", ""),
    ("arrow",
     "2194-21AA 2934 2935 2B05-2B07 27A1 1F503 1F504 1F519-1F51D 1F500-1F502 23E9-23EF 23F8-23FA 25B6 25C0 1F53C "
     "1F53D 23CF", ""),
    ("shape",
     "1F3FB-1F3FF 1F532-1F53B 1F7E0-1F7EB 25AA 25AB 25FB-25FE 26AA 26AB 2B1B 2B1C 2B55 1F4A0 1F518 1F533", ""),
    ("zodiac", "2648-2653 26CE", ""),
    ("sign",
     "1F6AB 1F6AD-1F6B1 1F6B3 1F6B7-1F6BC 1F6BE 1F6C2-1F6C5 1F6D0 1F6D1 1F6DC 1F3E7 1F3A6 1F4F3-1F4F6 1F51E 1F52F "
     "1F530 1F531 1F549 1F54E 1F310 1F4A2 1F4A4 1F4A5 1F4A8 1F4AC 1F4AD 1F5E8 1F5EF 203C 2049 2611 2620-262F 2638 "
     "2640 2642 265F-2666 267B-267F 2695 269B 269C 26A0 26A7 26D4 2705 2714 2716 271D 2721 2733 2734 2747 "
     "274C-2757 2795-2797 27B0 27BF 3030 303D 1F7F0 1FAAF 1F505 1F506 1F517 1F4B1 1FAEF", ""),
    ("object", "1-1FFFF", ""),
)  # fmt: skip

# The same form, over the keys of heads; what matches none of them is no face.
_FACES = (
    ("smiley", next(points for kind, points, _ in KINDS if kind == "smiley"), ""),
    ("cat", "1F431 1F638-1F640", ""),
    ("animal", "1F42D-1F432 1F434-1F43A 1F43C 1F648-1F64A 1F981 1F984 1F98A", r"^bear$"),
    ("sky", "1F31A-1F31E", ""),
    ("creature", "1F479 1F47A 1F47D 1F480 1F916", ""),
)  # fmt: skip


def classes(subset: SubsetName) -> tuple[str, ...]:
    """Names of the classes of `subset`, in the order of their labels."""
    if subset == "people":
        tones = ("", *(f", {tone} skin tone" for tone in TONES))
        return tuple(gender + tone for gender in ("person", "woman", "man") for tone in tones)
    table = KINDS if subset == "all" else _FACES
    return tuple(kind for kind, _, _ in table)


def class_of(drawing: Drawing, subset: SubsetName) -> str | None:
    """The class of `drawing`, or None where `subset` does not hold it."""
    if subset == "people":
        if drawing.base not in _PORTRAITS:
            return None
        return drawing.gender if not drawing.tones else f"{drawing.gender}, {drawing.tone} skin tone"
    if subset == "faces":
        return _first_match(_FACES, drawing)
    return _first_match(KINDS, drawing)


def _first_match(table: tuple[tuple[str, str, str], ...], drawing: Drawing) -> str | None:
    first = int(drawing.key.split("-")[0], 16)
    for kind, points, pattern in table:
        if any(first in span for span in _spans(points)) or (pattern and re.search(pattern, drawing.name)):
            return kind
    return None


@functools.cache
def _spans(points: str) -> list[range]:
    ends = [part.split("-") for part in points.split()]
    return [range(int(end[0], 16), int(end[-1], 16) + 1) for end in ends]
