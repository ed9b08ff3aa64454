"""The pod recipes compiled for pods that are not there, against what was recorded: traffic that doubles shows here.

`python -m tests.plan.test_pods` records anew. Needs the extra `tpu`, and for GPUs `cuda`: both compilers run on any
machine.
"""

import importlib.util
import json
from pathlib import Path

import pytest

from jdiff.experiment import load_recipe
from jdiff.parallel import Mesh
from jdiff.plan import analytic, gpus
from jdiff.plan.compiled import compiled_step
from jdiff.plan.mesh import described
from jdiff.plan.mesh import parse as on_mesh
from jdiff.plan.topology import devices, parse

ROOT = Path(__file__).parent.parent.parent
GOLDEN = Path(__file__).parent / "golden.json"
# Recipe, topology, slices, mesh.
PODS = {
    "DiT-XL/2 on 512 v5p": ("pod_dit_xl2", "v5p:8x8x8", 1, "data=64,fsdp=8"),
    "MM-DiT on 512 v5p": ("pod_mmdit", "v5p:8x8x8", 1, "data=8,fsdp=64"),
    "DiT-XL/2 on 64 H100": ("pod_dit_xl2", "h100:8x8", 1, "data=8,fsdp=8"),
}
pytestmark = pytest.mark.slow


def need_compiler(topology):
    platform = parse(topology).chip.platform
    there = gpus.installed() if platform == "cuda" else importlib.util.find_spec("libtpu")
    if not there:
        pytest.skip(f"needs the extra {platform}")


def compiled(name, cache):
    recipe, topology, slices, mesh = PODS[name]
    experiment = on_mesh(mesh, load_recipe(ROOT / "experiments" / f"{recipe}.py"))
    trainer, missing = described(experiment, parse(topology, slices), 0)
    assert not missing
    return trainer, compiled_step(trainer, parse(topology, slices), cache)


def recorded(said):
    return {"flops": said.flops, "arguments": said.arguments, "temporaries": said.temporaries, "sent": said.sent}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_computes_holds_and_sends_what_it_did(name, tmp_path):
    need_compiler(PODS[name][1])
    platform = parse(PODS[name][1]).chip.platform
    trainer, said = compiled(name, tmp_path)
    golden = json.loads(GOLDEN.read_text())[name]
    work = analytic.work(trainer.experiment)
    formula = (
        work.hardware(trainer.experiment.network.compute.remat, fused=True)
        * trainer.experiment.batch_size
        / trainer.mesh.size
    )
    assert said.flops == pytest.approx(golden["flops"], rel=1e-3) == pytest.approx(formula, rel=0.02)
    assert said.arguments == golden["arguments"] == sum(analytic.arguments(trainer, platform).values())
    assert said.arguments < said.peak and not said.opaque
    assert said.temporaries == pytest.approx(golden["temporaries"], rel=0.1)
    if platform == "tpu":  # what is alive at once; and most of what is gathered has products beside it
        assert said.peak < said.arguments + said.temporaries
        assert sum(size for size, _ in said.beside) > 0.5 * golden["sent"]["all-gather"]
    else:  # FSDP stays within a host
        assert said.between == pytest.approx(golden["sent"]["all-reduce"], rel=0.1)
    least = 0.01 * sum(golden["sent"].values())
    for kind in said.sent | golden["sent"]:
        assert said.sent.get(kind, 0) == pytest.approx(golden["sent"].get(kind, 0), rel=0.1, abs=least), kind


@pytest.mark.parametrize("name", ["v4:2x2x4", "v5e:4x4", "v5p:2x2x4", "v6e:4x4", "tpu7x:2x2x4", "h100:2x8", "h200:4x4"])
def test_each_chip_has_its_devices_and_they_make_a_mesh(name):
    """Both cores of a v4 are one device there, which its description must be asked for."""
    need_compiler(name)
    found = devices(parse(name))
    assert Mesh(data=len(found) // 4, fsdp=4).build(found).size == len(found) == 16 * (1 + name.startswith("tpu7x"))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(
            json.dumps({name: recorded(compiled(name, Path(folder))[1]) for name in PODS}, indent=2) + "\n"
        )
