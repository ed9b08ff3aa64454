"""Images to train on: sources of rows, and the pipeline that makes batches of them."""

from jdiff.data.config import Data, Latents, open_source, training_batches
from jdiff.data.folder import FolderSource
from jdiff.data.openmoji import CREDIT, OpenMojiSource
from jdiff.data.pipeline import Batch, batches, floats, ordered, stream
from jdiff.data.replaced import Replaced
from jdiff.data.sources import ArraySource, Row, Source, Split, find_class
from jdiff.data.tfds import TFDSSource

__all__ = [
    "CREDIT",
    "ArraySource",
    "Batch",
    "Data",
    "FolderSource",
    "Latents",
    "OpenMojiSource",
    "Replaced",
    "Row",
    "Source",
    "Split",
    "TFDSSource",
    "batches",
    "find_class",
    "floats",
    "open_source",
    "ordered",
    "stream",
    "training_batches",
]
