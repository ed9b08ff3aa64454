"""Meshes over the eight fake devices of the suite, and how batches lie on them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jdiff.parallel import Mesh, check_batch, host_share, join, put_batch
from jdiff.parallel.mesh import AXES


def shape_of(mesh):
    return {axis: size for axis, size in mesh.build().shape.items() if size > 1}


def test_meshes():
    assert shape_of(Mesh()) == {"data": 8}
    assert shape_of(Mesh(fsdp=4)) == {"data": 2, "fsdp": 4}
    assert shape_of(Mesh(data=1, fsdp=2)) == {"fsdp": 2}
    assert shape_of(Mesh(tensor=2, context=2)) == {"data": 2, "tensor": 2, "context": 2}
    assert shape_of(Mesh(pipeline=2, fsdp=4)) == {"pipeline": 2, "fsdp": 4}
    for mesh in (Mesh(fsdp=16), Mesh(data=4, fsdp=4), Mesh(data=2, tensor=8)):
        with pytest.raises(ValueError, match="does not fit 8 devices"):
            mesh.build()
    with pytest.raises(ValueError, match="data=None x fsdp=3 does not divide 8 devices"):
        Mesh(fsdp=3).build()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": 0}, "mesh.data must be at least 1, got 0"),
        ({"context": -2}, "mesh.context must be at least 1, got -2"),
        ({"strategy": "xmap"}, "mesh.strategy: 'xmap' is not jit or pmap"),
        ({"strategy": "pmap", "tensor": 2}, "pmap splits along data alone, got data=None x tensor=2"),
    ],
)
def test_what_is_no_mesh_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Mesh(**fields)


def test_batches_are_split_over_data_and_fsdp():
    mesh = Mesh(fsdp=2, tensor=2).build()
    check_batch(mesh, 12)
    check_batch(mesh, 12, accumulate=3)
    with pytest.raises(ValueError, match="batch_size 6 must be a multiple of the 4 slices"):
        check_batch(mesh, 6)
    with pytest.raises(ValueError, match=r"batch_size 12 must be a multiple of the 4 slices .* times accumulate=2"):
        check_batch(mesh, 12, accumulate=2)
    batch = put_batch(mesh, {"image": np.arange(32.0).reshape(16, 2)})
    assert {shard.data.shape for shard in batch["image"].addressable_shards} == {(4, 2)}
    np.testing.assert_array_equal(batch["image"], np.arange(32.0).reshape(16, 2))


def parts(monkeypatch, shape, owners):
    """What each process is told of a mesh whose devices, in its order, are of these processes."""
    sizes = {axis: shape.get(axis, 1) for axis in AXES}
    devices = np.array([SimpleNamespace(process_index=owner) for owner in owners]).reshape(tuple(sizes.values()))
    mesh = SimpleNamespace(shape=sizes, axis_names=AXES, devices=devices)
    told = []
    for process in range(max(owners) + 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        told.append(host_share(mesh))
    return told


@pytest.mark.parametrize(
    ("shape", "owners", "expected"),
    [
        ({"data": 4}, [0, 0, 1, 1], [(0, 2), (1, 2)]),
        ({"data": 2, "fsdp": 2}, [1, 1, 0, 0], [(1, 2), (0, 2)]),
        # Two processes share the tensor axis of each slice.
        ({"data": 2, "tensor": 4}, [0, 0, 1, 1, 2, 2, 3, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        # Stages lie furthest apart: processes 0 and 2 have the same examples.
        ({"pipeline": 2, "data": 4}, [0, 0, 1, 1, 2, 2, 3, 3], [(0, 2), (1, 2), (0, 2), (1, 2)]),
        ({"context": 4}, [0, 1, 2, 3], [(0, 1)] * 4),
        ({"fsdp": 2, "context": 2}, [0, 0, 0, 0], [(0, 1)]),
    ],
    ids=str,
)
def test_processes_along_other_axes_have_the_same_part_of_a_batch(monkeypatch, shape, owners, expected):
    assert parts(monkeypatch, shape, owners) == expected


@pytest.mark.parametrize(
    ("shape", "owners"),
    [
        ({"data": 4}, [0, 1, 0, 1]),
        ({"data": 4}, [0, 0, 0, 1]),
        ({"data": 3}, [0, 1, 1]),
        ({"pipeline": 2, "data": 2}, [0, 0, 1, 0]),
    ],
    ids=str,
)
def test_parts_that_do_not_lie_side_by_side_are_refused(monkeypatch, shape, owners):
    with pytest.raises(ValueError, match="side by side"):
        parts(monkeypatch, shape, owners)


def test_processes_are_joined_as_the_environment_says(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    join()  # alone
    assert host_share(Mesh().build()) == (0, 1)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1234")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    with pytest.raises(ValueError, match="missing: JAX_NUM_PROCESSES"):
        join()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match=r"must be in 0\.\.JAX_NUM_PROCESSES - 1; got 2 of 2"):
        join()
