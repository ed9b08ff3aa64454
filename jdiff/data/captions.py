"""Rules that repair, drop and rewrite captions: pure functions of the caption, and of row and seed where they draw.

What a rule did is known from its name and those arguments alone, so names and seed are all that a view records.
"""

import html
import re
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
    return "" if uniform(np.array([row]), seed, "drop caption")[0] < rate else caption


def swap(caption: str, row: int, seed: int, words: Sequence[str]) -> str:
    """`caption` with each of `words` that it holds replaced by one of them, drawn evenly: a counterfactual caption.

    One draw a row: all of them become the same word. Only whole words count, in any case.
    """
    if len(words) < 2:
        raise ValueError(f"words must be at least two that stand for each other; got {list(words)}")
    chosen = words[int(uniform(np.array([row]), seed, "swap caption")[0] * len(words))]
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})\b", re.IGNORECASE)
    return pattern.sub(lambda _: chosen, caption)


def script_of(caption: str) -> str:
    """The script of most letters ("latin", "cyrillic", "cjk", ...), "" without letters: what is known of a language."""
    names = [unicodedata.name(letter, "").split(" ")[0].lower() for letter in caption[:200] if letter.isalpha()]
    return max(sorted(set(names)), key=names.count) if names else ""
