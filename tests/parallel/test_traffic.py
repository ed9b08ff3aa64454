"""What an update under fsdp sends: weights together twice, the gradient apart once, and no activations.

A device receives P (X - 1) / X bytes for each of these, of the P bytes of split parameters over X devices.
"""

import dataclasses

import pytest

from jdiff.parallel import Mesh
from jdiff.plan import analytic
from jdiff.plan.statistics import statistics
from jdiff.train.trainer import assemble
from tests.parallel.runs import ROWS, TRANSFORMERS, UNETS, run_of


def sent(name, mesh, rows=ROWS):
    """Bytes by kind of operation, of the compiled update and by formula."""
    trainer = assemble(dataclasses.replace(run_of((TRANSFORMERS | UNETS)[name], mesh), batch_size=rows), 3)
    text = trainer.step().lower(trainer.abstract, trainer.abstract_batch).compile().as_text()
    return statistics(text).sent(), analytic.sent(trainer)


@pytest.mark.parametrize("name", ["DiT", *(pytest.param(name, marks=pytest.mark.slow) for name in ("JiT", *UNETS))])
@pytest.mark.parametrize("mesh", [Mesh(fsdp=8), Mesh(data=2, fsdp=4)], ids=["fsdp", "data-fsdp"])
def test_bytes_under_fsdp_are_those_of_the_weights(name, mesh):
    compiled, formula = sent(name, mesh)
    assert sum(compiled.values()) <= 1.2 * sum(formula.values())
    for kind, size in compiled.items():
        assert size <= 1.2 * formula[kind]
    assert compiled["reduce-scatter"] == pytest.approx(formula["reduce-scatter"], rel=0.01)  # and none is summed whole


def test_they_do_not_grow_with_the_batch():
    """As they would if activations were sent."""
    few, many = (sum(sent("DiT", Mesh(fsdp=8), rows)[0].values()) for rows in (16, 64))
    assert many <= 1.01 * few
