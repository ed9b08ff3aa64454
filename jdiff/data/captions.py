"""Rules that repair, drop and rewrite captions: pure functions of the caption, and of row and seed where they draw.

What a rule did is known from its name and those arguments alone, so names and seed are all that a view records.
"""

import dataclasses
import html
import json
import re
import string
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from jdiff.data.order import uniform

_FILE = re.compile(r"^[\w\-.() ]*\.(jpe?g|png|webp|gif|bmp|tiff?|heic)$", re.IGNORECASE | re.ASCII)
_CAMERA = re.compile(r"^(img|dsc[nf]?|p|pict|dcim|screenshot|image|photo|untitled)?[\W_]*\d[\d\W_]*$", re.IGNORECASE)
_TAG = re.compile(r"<[a-zA-Z/!][^<>]{0,1000}>")
_BOILERPLATE = re.compile(
    r" ?(?:[|\-\u2013\u2014,.:;(\[] ?)?(?:royalty[- ]free(?: stock)? (?:images?|photos?|photography|vectors?)"
    r"|stock (?:photos?|photography|images?|vectors?|illustrations?)|click to enlarge|image \d+ of \d+"
    r"|(?:photo|image) (?:via|courtesy of) \S+|all rights reserved|free shipping|buy now)[)\].!]*$",
    re.IGNORECASE,
)


def plain_html(caption: str) -> str:
    """Without tags, entities as characters, white space as single spaces."""
    return " ".join(html.unescape(_TAG.sub(" ", caption)).split())


def without_file_names(caption: str) -> str:
    """ "" for the name of a file or a camera's number, such as "IMG_2034.JPG"; words in a file's name are kept."""
    text = caption.strip()
    if not _FILE.match(text) and not _CAMERA.match(text):
        return caption
    words = re.sub(r"[\W_]+", " ", text.rsplit(".", 1)[0] if _FILE.match(text) else text).strip()
    return "" if _CAMERA.match(words) or not re.search(r"[^\W\d_]{3}", words) else words


def without_boilerplate(caption: str) -> str:
    """Without what sellers of pictures put at the end: "stock photo", "royalty-free images", "click to enlarge"."""
    caption = " ".join(caption.split())
    while found := _BOILERPLATE.search(caption, max(len(caption) - _LONGEST, 0)):
        caption = caption[: found.start()]
    return caption


_LONGEST = 200
"""Characters at the end that boilerplate is looked for in, so that a long caption takes no longer than a short one."""
REPAIRS: dict[str, Callable[[str], str]] = {
    "html": plain_html,
    "file_names": without_file_names,
    "boilerplate": without_boilerplate,
}


def repair(caption: str, rules: Sequence[str]) -> str:
    """`caption` after each of the rules (names in `REPAIRS`) in turn. Raises ValueError for a name that is none."""
    for rule in rules:
        if rule not in REPAIRS:
            raise ValueError(f"rules must be among {', '.join(REPAIRS)}; got {rule!r}")
        caption = REPAIRS[rule](caption)
    return caption


def drop(caption: str, row: int, seed: int, rate: float) -> str:
    """ "", the null caption, for a share `rate` of the rows; which, the seed decides."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1]; got {rate}")
    return "" if uniform(np.array([row], np.uint64), seed, "drop caption")[0] < rate else caption


def swap(caption: str, row: int, seed: int, words: Sequence[str]) -> str:
    """`caption` with each of `words` that it holds replaced by one of them, drawn evenly: a counterfactual caption.

    Words that go together are one entry, separated by commas, and are replaced one for one: of ["man, his",
    "woman, her"], "a man and his dog" becomes "a woman and her dog" or stays. One draw a row: all of them become words
    of the same entry. Only whole words count, in any case; a first capital stays one.
    """
    entries = [[word.strip() for word in entry.split(",")] for entry in words]
    if len(entries) < 2 or len({len(entry) for entry in entries}) > 1 or not all(word for e in entries for word in e):
        raise ValueError(f"words must be at least two entries of equally many words each; got {list(words)}")
    place = {word.lower(): place for entry in reversed(entries) for place, word in enumerate(entry)}
    draw = uniform(np.array([row], np.uint64), seed, f"swap caption {entries}")[0]
    chosen = entries[int(draw * len(entries))]
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(place, key=len, reverse=True)))})\b", re.IGNORECASE)

    def other(found: re.Match[str]) -> str:
        word = chosen[place[found[0].lower()]]
        return word[0].upper() + word[1:] if found[0][0].isupper() else word

    return pattern.sub(other, caption)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioning:
    """What captions become on their way into a batch: a pure function of (caption, tags, row, seed).

    Values alone, so that it can be recorded: it belongs to the fingerprint of a stream. Raises ValueError for templates
    with other fields than {caption}, {tags} and {style}, and for what `swap` and `drop` refuse.
    """

    templates: tuple[str, ...] = ()
    """Texts such as "a photo of {tags}" or "{caption}, {style}", of which one is drawn: among those whose fields the
    row has something for. Without any, or where none fits, the caption stays."""
    styles: tuple[str, ...] = ()
    """Tags that say how a picture is made, such as "oil painting": a row's tags of these are {style}, not {tags}."""
    shuffle_tags: bool = False
    """Draw the order of the tags, rather than keep the row's."""
    swaps: tuple[tuple[str, ...], ...] = ()
    """Groups of words that stand for each other, each as `swap` takes it and with a draw of its own."""
    dropout: float = 0.0
    """Share of captions that become "", the null caption."""

    def __post_init__(self):
        for template in self.templates:
            try:
                fields = _fields(template)
            except ValueError as error:
                raise ValueError(f"templates: {template!r} cannot be read: {error}") from error
            if not fields or not fields <= {"caption", "tags", "style"}:
                raise ValueError(f"templates must be of {{caption}}, {{tags}} and {{style}}; got {template!r}")
        drop("", 0, 0, self.dropout)
        for words in self.swaps:
            swap("", 0, 0, words)

    def apply(self, caption: str, tags: Sequence[str], row: int, seed: int) -> str:
        """The caption that is shown. `row` is any 64 bits that what is drawn hangs on: the row, and the epoch."""
        if self.templates:
            caption = self._filled(caption, tags, np.array([row], np.uint64), seed)
        for words in self.swaps:
            caption = swap(caption, row, seed, words)
        return drop(caption, row, seed, self.dropout) if self.dropout else caption

    def _filled(self, caption: str, tags: Sequence[str], at: np.ndarray, seed: int) -> str:
        """A template with what the row has for it, or the caption where none fits."""
        manner = [tag for tag in tags if tag in self.styles]
        others = [tag for tag in tags if tag not in self.styles]
        if self.shuffle_tags:
            order = [uniform(at, seed, f"place of tag {tag}")[0] for tag in others]
            others = [tag for _, tag in sorted(zip(order, others, strict=True))]
        known = {"caption": caption, "tags": ", ".join(others), "style": ", ".join(manner)}
        fitting = [text for text in self.templates if all(known[field] for field in _fields(text))]
        if not fitting:
            return caption
        return fitting[int(uniform(at, seed, "template")[0] * len(fitting))].format(**known)


def _fields(template: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}


def tags_of(text: str | None) -> list[str]:
    """The tags in a text, separated by commas, or in a JSON list of texts; each once, in their order."""
    if text is None:
        return []
    try:
        listed = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        listed = None
    tags = listed if isinstance(listed, list) else text.split(",")
    return list(dict.fromkeys(tag.strip() for tag in tags if isinstance(tag, str) and tag.strip()))


def script_of(caption: str) -> str:
    """The script of most letters ("latin", "cyrillic", "cjk", ...), "" without letters: what is known of a language."""
    names = [unicodedata.name(letter, "").split(" ")[0].lower() for letter in caption[:200] if letter.isalpha()]
    return max(sorted(set(names)), key=names.count) if names else ""
