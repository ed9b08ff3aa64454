"""OpenMoji: what is named, which concepts are held out, which class each drawing has, and what is drawn."""

import collections
import hashlib
import re

import numpy as np
import pytest

from jdiff.data import Data, OpenMojiSource, kinds, open_source
from jdiff.data.drawings import TONES, base_of, named_drawings
from jdiff.data.openmoji import BOXES, render

SUBSETS = ("people", "faces", "all")


def members(subset):
    return [(d, kinds.class_of(d, subset)) for d in named_drawings()[0] if kinds.class_of(d, subset)]


def caption_of(key):
    return next(d.caption for d in named_drawings()[0] if d.key == key)


def test_named_and_unnamed_drawings_are_counted():
    named, unnamed = named_drawings()
    assert (len(named), unnamed) == (3953, 542)
    assert len({d.key for d in named}) == len(named)
    assert len({d.caption for d in named}) == len(named)


@pytest.mark.parametrize(
    ("key", "caption"),
    [
        ("1F468", "man"),
        ("1F469-1F3FF-200D-1F33E", "woman farmer: dark skin tone"),
        ("1F9DB-1F3FE", "vampire: medium-dark skin tone"),
        ("1F1F0-1F1FF", "flag: Kazakhstan"),
        ("1F3F4-E0067-E0062-E0073-E0063-E0074-E007F", "flag: Scotland"),
        ("1F469-1F3FB-200D-1F91D-200D-1F468-1F3FF", "woman and man holding hands: light skin tone, dark skin tone"),
        ("0031-FE0F-20E3", "keycap 1"),
        ("1F408", "cat"),
    ],
)
def test_captions(key, caption):
    assert caption_of(key) == caption


# Each row is one concept, written by hand from Unicode's own variants.
CONCEPTS = [
    ("1F468-200D-1F33E", "1F469-1F3FF-200D-1F33E", "1F9D1-200D-1F33E", "1F9D1-1F3FB-200D-1F33E"),
    ("1F468", "1F469-1F3FE", "1F9D1"),
    ("1F466", "1F467-1F3FB", "1F9D2"),
    ("1F474", "1F475-1F3FD", "1F9D3"),
    ("1F934", "1F478", "1FAC5-1F3FF"),
    ("1F9D4", "1F9D4-1F3FB-200D-2640-FE0F", "1F9D4-200D-2642-FE0F"),
    ("1F468-200D-1F9B0", "1F469-1F3FF-200D-1F9B0"),
    ("1F6B6", "1F6B6-200D-2640-FE0F-200D-27A1-FE0F", "1F6B6-1F3FB-200D-27A1-FE0F"),
    ("1F468-200D-1F9AF", "1F9D1-1F3FE-200D-1F9AF-200D-27A1-FE0F"),
    ("1F46B", "1F46C-1F3FB", "1F469-1F3FB-200D-1F91D-200D-1F468-1F3FF", "1F9D1-200D-1F91D-200D-1F9D1"),
    ("1F48F", "1F469-200D-2764-FE0F-200D-1F48B-200D-1F468", "1F48F-1F3FB"),
    ("1F491", "1F9D1-1F3FB-200D-2764-FE0F-200D-1F9D1-1F3FF"),
    ("1F46A", "1F468-200D-1F469-200D-1F467-200D-1F466", "1F9D1-200D-1F9D2"),
    ("1F91D", "1FAF1-1F3FB-200D-1FAF2-1F3FF", "1F91D-1F3FD"),
    ("1F575", "1F575-FE0F-200D-2640-FE0F", "1F575-1F3FB-200D-2642-FE0F"),
    ("1F385", "1F936-1F3FF", "1F9D1-1F3FB-200D-1F384"),
]


@pytest.mark.parametrize("keys", CONCEPTS, ids=lambda keys: keys[0])
def test_variants_share_a_base(keys):
    assert len({base_of(key) for key in keys}) == 1


def test_concepts_do_not_share_a_base():
    assert len({base_of(keys[0]) for keys in CONCEPTS}) == len(CONCEPTS)
    # Signs that only mean something beside a person are concepts of their own when alone.
    alone = ["27A1", "2640", "2642", "1F3FB", "1F3FF", "2B05", "1F33E"]
    assert len({base_of(key) for key in alone}) == len(alone)


def test_no_variant_of_a_held_out_drawing_is_trained_on():
    named, _ = named_drawings()
    # Read from the captions, not from the code points that the base is made of.
    sides = collections.defaultdict(set)
    for d in named:
        if re.fullmatch("1F9B[0-3]", d.key):
            continue  # a loose wig is named as the person who wears it, and is no variant of that person
        words = d.caption.split(": ")[0] if "skin tone" in d.caption else d.caption
        words = words.replace(" facing right", "")
        for gender in ("woman", "man", "person", "women", "men", "people"):
            words = words.replace(f"{gender} ", "", 1) if words.startswith(f"{gender} ") else words
        sides[words].add(d.held_out)
    assert [words for words, seen in sides.items() if len(seen) > 1] == []
    assert sum(True in seen for seen in sides.values()) > 100


def test_split_is_a_tenth_of_the_concepts():
    named, _ = named_drawings()
    held_out = {d.base for d in named if d.held_out}
    trained = {d.base for d in named if not d.held_out}
    assert not held_out & trained
    assert (len(held_out), len(held_out | trained)) == (171, 1697)


@pytest.mark.parametrize(
    ("subset", "train", "held_out", "classes"), [("people", 522, 60, 18), ("faces", 135, 15, 5), ("all", 3476, 477, 29)]
)
def test_counts(subset, train, held_out, classes):
    sides = collections.Counter(d.held_out for d, _ in members(subset))
    assert (sides[False], sides[True]) == (train, held_out)
    assert len(set(kinds.classes(subset))) == len(kinds.classes(subset)) == classes


@pytest.mark.parametrize("subset", SUBSETS)
def test_every_class_is_trained_on(subset):
    assert {name for d, name in members(subset) if not d.held_out} == set(kinds.classes(subset))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("1F408", "cat"),
        ("1F63A", "cat"),
        ("1F415", "animal"),
        ("1F1EB-1F1F7", "flag"),
        ("1F4EA", "paper"),  # a mailbox with a lowered flag is no flag
        ("1F9D1-200D-1F91D-200D-1F9D1", "group"),
        ("1F64B", "person"),  # a person raising a hand is no hand
        ("1F44B-1F3FF", "hand"),
        ("1F600", "smiley"),
        ("1F60D", "smiley"),  # heart-eyes are no heart
        ("2764", "heart"),
        ("1F554", "clock"),
        ("1F346", "food"),
        ("1F697", "vehicle"),
        ("2648", "zodiac"),
    ],
)
def test_kinds(key, kind):
    assert next(name for d, name in members("all") if d.key == key) == kind


def test_classes_of_people_are_those_of_their_captions():
    for d, name in members("people"):
        gender, _, tone = name.partition(", ")
        assert d.caption.endswith(tone) and ("skin tone" in d.caption) == bool(tone)
        spelled = {"woman": {"woman", "princess", "Mrs."}, "man": {"man", "prince", "Santa"}}
        words = set(d.name.split())
        assert (gender == "woman") == bool(words & spelled["woman"])
        assert (gender == "man") == bool(words & spelled["man"])
    assert len({name for _, name in members("people")}) == 3 * (1 + len(TONES))


@pytest.mark.parametrize("key", ["1F3C3", "1F46A", "1F930", "1F6C0", "1F574", "1F408", "1F37C", "1F9CD", "1F466"])
def test_people_are_single_adults_head_and_shoulders(key):
    assert key not in {d.key for d, _ in members("people")}


@pytest.mark.parametrize("subset", ["people", "faces"])
def test_boxes_hold_all_ink_and_waste_little(subset):
    left, top, side = BOXES[subset]
    scale = 2
    ink = np.zeros((72 * scale, 72 * scale), bool)
    for d, _ in members(subset):
        if subset == "people" and d.tone not in ("none", "dark"):
            continue  # tones change colours, not outlines; these two keep the test fast
        ink |= (render(d.key, size=72 * scale, box=BOXES["all"]) < 250).any(-1)
    rows, columns = np.flatnonzero(ink.any(1)) / scale, np.flatnonzero(ink.any(0)) / scale
    assert left <= columns[0] and columns[-1] < left + side
    assert top <= rows[0] and rows[-1] < top + side
    # No smaller square that is centred sideways would do, to within two units of the canvas.
    needed = max(rows[-1] - rows[0], 2 * max(36 - columns[0], columns[-1] - 36))
    assert side - needed <= 2


@pytest.mark.parametrize("subset", SUBSETS)
def test_boxes_are_centred_sideways(subset):
    left, _, side = BOXES[subset]
    assert 2 * left + side == 72


def test_render_crops_and_keeps_colours():
    whole = render("1F600", size=72, box=(0, 0, 72))
    cropped = render("1F600", size=68, box=BOXES["faces"])
    assert np.array_equal(whole[2:70, 2:70], cropped)
    assert (whole[36, 20] == (0xFC, 0xEA, 0x2B)).all()  # OpenMoji's yellow
    assert (whole[0] == 255).all()


@pytest.fixture(scope="module")
def faces():
    return OpenMojiSource(subset="faces", split="train", size=32)


def test_rendering_twice_gives_the_same_pixels(faces):
    def digest(source):
        return hashlib.sha256(b"".join(source[row]["image"].tobytes() for row in range(len(source)))).hexdigest()

    again = OpenMojiSource(subset="faces", split="train", size=32)
    assert digest(faces) == digest(again)
    assert faces.fingerprint == again.fingerprint


def test_rows(faces):
    assert faces.skipped == {"no Unicode name": 542}
    rows = [faces[row] for row in range(len(faces))]
    assert all(row["image"].shape == (32, 32, 3) and row["image"].dtype == np.uint8 for row in rows)
    assert len({row["image"].tobytes() for row in rows}) == len(rows)
    named = {row["caption"]: faces.class_names[row["label"]] for row in rows}
    assert named["grinning cat"] == "cat" and named["grinning face"] == "smiley" and named["fox"] == "animal"


def test_fingerprint_tells_contents_apart(faces):
    others = [
        OpenMojiSource(subset="faces", split="held_out", size=32),
        OpenMojiSource(subset="faces", split="train", size=16),
        OpenMojiSource(subset="people", split="held_out", size=32),
    ]
    assert len({source.fingerprint for source in [faces, *others]}) == 4


def test_split_sides_are_disjoint_and_complete():
    train, held_out = (open_source(Data(subset="faces", size=8), split) for split in ("train", "held_out"))
    keys = [d.key for source in (train, held_out) for d in source.drawings]
    assert sorted(keys) == sorted(d.key for d, _ in members("faces"))


@pytest.mark.parametrize(("change", "said"), [({"subset": "birds"}, "people, faces, all"), ({"size": 4}, "at least 8")])
def test_refusals(change, said):
    with pytest.raises(ValueError, match=said):
        OpenMojiSource(**{"subset": "faces", "split": "train", "size": 32, **change})
