"""What an update under fsdp sends: weights together twice, the gradient apart once, and no activations.

A device receives P (X - 1) / X bytes for each of these, of the P bytes of split parameters over X devices. For a CPU,
XLA makes of reduce-scatter an all-reduce, which is twice that, and keeps a slice; it is counted as what it is.
"""

import dataclasses

import numpy as np
import pytest

from jdiff.parallel import Mesh
from jdiff.plan.statistics import statistics
from jdiff.train.trainer import assemble
from tests.parallel.runs import ROWS, TRANSFORMERS, UNETS, run_of


def sent(name, mesh, rows=ROWS):
    """Bytes by kind of operation, and the parameters' that are split and that are not."""
    trainer = assemble(dataclasses.replace(run_of((TRANSFORMERS | UNETS)[name], mesh), batch_size=rows), 3)
    text = trainer.step().lower(trainer.abstract, trainer.abstract_batch).compile().as_text()
    split = sum(4 * np.prod(row.shape) for row in trainer.layout() if "fsdp" in row.spec)
    whole = sum(4 * np.prod(row.shape) for row in trainer.layout() if "fsdp" not in row.spec)
    return statistics(text).sent(), split, whole


@pytest.mark.parametrize(
    "name", ["DiT", *(pytest.param(name, marks=pytest.mark.slow) for name in ("JiT", "UNet", "DhariwalUNet"))]
)
def test_bytes_under_fsdp_are_those_of_the_weights(name):
    bytes_sent, split, whole = sent(name, Mesh(fsdp=8))
    assert split > 9 * whole
    share = 7 / 8
    assert bytes_sent["all-gather"] <= 1.2 * 2 * split * share
    assert bytes_sent["all-reduce"] + 2 * bytes_sent.get("reduce-scatter", 0) <= 1.2 * 2 * (split + whole) * share
    assert sum(bytes_sent.values()) <= 1.2 * (4 * split + 2 * whole) * share


def test_they_do_not_grow_with_the_batch():
    """As they would if activations were sent."""
    few, many = (sum(sent("DiT", Mesh(fsdp=8), rows)[0].values()) for rows in (16, 64))
    assert many <= 1.01 * few
