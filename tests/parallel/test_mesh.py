"""Meshes over the eight fake devices of the suite, and what lies where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jdiff.parallel import Mesh, check_batch, host_share, join, put_batch, state_sharding


def test_meshes():
    assert dict(Mesh().build().shape) == {"data": 8, "fsdp": 1}
    assert dict(Mesh(fsdp=4).build().shape) == {"data": 2, "fsdp": 4}
    assert dict(Mesh(data=1, fsdp=2).build().shape) == {"data": 1, "fsdp": 2}
    for mesh in (Mesh(fsdp=16), Mesh(data=4, fsdp=4), Mesh(data=0)):
        with pytest.raises(ValueError, match="does not fit 8 devices"):
            mesh.build()
    with pytest.raises(ValueError, match="fsdp=3 does not divide 8 devices"):
        Mesh(fsdp=3).build()


def test_batches_are_split_over_all_devices():
    mesh = Mesh(fsdp=2).build()
    check_batch(mesh, 16)
    with pytest.raises(ValueError, match="batch_size 12 must be a multiple of the 8 devices"):
        check_batch(mesh, 12)
    batch = put_batch(mesh, {"image": np.arange(32.0).reshape(16, 2)})
    assert {shard.data.shape for shard in batch["image"].addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(batch["image"], np.arange(32.0).reshape(16, 2))


def test_large_arrays_are_split_and_small_ones_copied():
    mesh = Mesh(fsdp=4).build()
    shapes = {"wide": (3, 3, 64, 128), "odd": (129, 131), "small": (64,)}
    got = state_sharding(mesh, {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()})
    assert got["wide"].spec == PartitionSpec(None, None, None, "fsdp")
    assert got["odd"].spec == got["small"].spec == PartitionSpec()
    everywhere = state_sharding(Mesh().build(), {"wide": jax.ShapeDtypeStruct((512, 512), jnp.float32)})
    assert everywhere["wide"].spec == PartitionSpec()


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
