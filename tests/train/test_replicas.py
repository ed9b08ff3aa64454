"""A device that errs in silence is named, by its copies or by what it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jdiff import cli
from jdiff.train.replicas import disagreeing
from jdiff.train.trainer import Trainer
from tests import recipe


def corrupted(leaf, device):
    """One bit of what one device holds is flipped."""
    parts = []
    for shard in leaf.addressable_shards:
        data = np.array(shard.data)
        if shard.device.id == device:
            data.reshape(-1).view(np.uint32)[-1] ^= 1 << 3
        parts.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


def state_on(data, fsdp):
    mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), devices=jax.devices()[: data * fsdp])
    put = lambda array, *spec: jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    return {"split": put(jnp.arange(64.0).reshape(8, 8), "fsdp"), "whole": put(jnp.arange(5.0))}


@pytest.mark.parametrize("name", ["split", "whole"])
def test_a_copy_that_differs_is_named(name):
    for data, fsdp, named in [(8, 1, [5]), (4, 2, [5]), (2, 4, [1, 5] if name == "split" else None)]:
        state = state_on(data, fsdp)
        assert disagreeing(state) == []
        found = disagreeing(state | {name: corrupted(state[name], 5)})
        if named is None:  # two hold the part 1 of `split`, and which of them errs in `whole` is not to be told
            named = [1, 5]
        assert found == [f"{jax.devices()[number]} of process 0" for number in named]


def test_an_update_that_is_not_the_same_twice_is_named():
    state = state_on(1, 8)  # no copies
    twin = state | {"split": corrupted(state["split"], 3)}
    assert disagreeing(state) == [] and disagreeing(state, state) == []
    assert disagreeing(state, twin) == [f"{jax.devices()[3]} of process 0"]


def test_a_run_stops_at_it(tmp_path, monkeypatch, capsys):
    words = ["train", recipe.__file__, "--sample-every", "1000", "--faults.check-every", "5", "--mesh.fsdp", "2"]
    cli.main([*words, "--out", str(tmp_path / "sound")])
    made, calls = Trainer.step, []

    def step(self):
        update = made(self)

        def failing(state, batch):
            state, metrics = update(state, batch)
            calls.append(int(state.step))
            if len(calls) == 8:  # the 7th update: the 5th is made twice
                state = state._replace(params=jax.tree.map(lambda leaf: corrupted(leaf, 6), state.params))
            return state, metrics

        return failing

    monkeypatch.setattr(Trainer, "step", step)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main([*words, "--out", str(tmp_path / "failing")])
    assert calls == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err == (
        f"jdiff: step 10: {jax.devices()[6]} of process 0 do not hold what others hold, or do not give the same twice; "
        "checkpoints after step 5 are not to be trusted"
    )
