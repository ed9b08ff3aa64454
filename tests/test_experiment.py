"""Experiments to JSON and back, and their hash."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from jdiff import experiment as ex
from jdiff.config import to_dict
from jdiff.losses import GridTime, HybridLoss
from jdiff.models import DiT, JiT, UNet, WindowedAttention
from jdiff.prediction import LearnedVariance, V
from jdiff.processes import VE, VP, RectifiedFlow
from jdiff.train.trainer import assemble
from tests.recipe import experiment


def test_json_and_back():
    assert ex.from_json(ex.to_json(experiment)) == experiment
    unet = UNet(channels=8, multipliers=(1, 2), blocks=(1, 1), attention=(1,), heads=2, patch=2)
    other = dataclasses.replace(experiment, process=VE(sigma_max=9.0), network=unet)
    assert ex.from_json(ex.to_json(other)) == other
    for network in (JiT(num_layers=6), DiT(attention=WindowedAttention(window=2), positions="rope")):
        other = dataclasses.replace(experiment, network=network)
        assert ex.from_json(ex.to_json(other)) == other


def test_the_hash_changes_with_any_field():
    hashes = {ex.fingerprint(experiment)}
    for change in [
        {"seed": 1},
        {"process": VE()},
        {"data": dataclasses.replace(experiment.data, size=16)},
        {"optimizer": dataclasses.replace(experiment.optimizer, clip=0.5)},
        {"sampling": dataclasses.replace(experiment.sampling, guidance=2.0)},
    ]:
        hashes.add(ex.fingerprint(dataclasses.replace(experiment, **change)))
    assert len(hashes) == 6
    assert ex.fingerprint(ex.from_json(ex.to_json(experiment))) in hashes


def test_what_does_not_fit_is_named():
    values = json.loads(ex.to_json(experiment))
    for change, message in [
        ({"stepss": 3}, r"unknown \['stepss'\], missing \[\]"),
        ({"process": {"type": "Nope"}}, r"process: type must be one of .*'VP'.*, got 'Nope'"),
        ({"process": {"type": "EDM", "sigma_min": 1.0}}, r"process: unknown \[\], missing \['sigma_max'\]"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"ema_decay": 1.5}, r"ema_decay must be in \[0, 1\), got 1\.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            ex.from_json(json.dumps(values | change))
    with pytest.raises(ValueError, match="EDMPreconditioning cannot be used with RectifiedFlow"):
        dataclasses.replace(experiment, process=RectifiedFlow())


def test_values_of_another_type_are_named():
    values = json.loads(ex.to_json(experiment))
    for change, message in [
        ({"steps": 24.0}, "steps: must be a whole number of 64 bits, got 24.0"),
        ({"steps": True}, "steps: must be a whole number of 64 bits, got true"),
        ({"seed": 2**70}, "seed: must be a whole number of 64 bits, got 1180591620717411303424"),
        ({"ema_decay": float("nan")}, "ema_decay: must be a finite number, got nan"),
        ({"ema_decay": None}, "ema_decay: must be a finite number, got null"),
        ({"name": ["x"]}, r"name: must be text, got \['x'\]"),
        ({"name": "\ud800"}, "name: must be text"),
        ({"process": "EDM"}, "process: must be an object with a type, got 'EDM'"),
        ({"process": {"type": ["EDM"]}}, r"process: type must be one of .*, got \['EDM'\]"),
        ({"data": []}, r"data: must be an object with a type, got \[\]"),
        ({"profiles": [0.1, "x"]}, r"profiles\[1\]: must be a finite number, got 'x'"),
        (
            {"keep": values["keep"] | {"metric": "fid"}},
            "keep.metric: must be one of 'loss', .*, got 'fid'",
        ),
        ({"optimizer": None}, "optimizer: must be an object, got null"),
    ]:
        with pytest.raises(ValueError, match=message):
            ex.from_json(json.dumps(values | change))
    for text in ("[]", "null", '"x"', "{}", "", "[" * 100_000):
        with pytest.raises(ValueError, match="config"):
            ex.from_json(text)


def test_a_field_that_came_later_is_as_it_was_and_renames_nothing():
    values = json.loads(ex.to_json(experiment))
    del values["data"]["max_replaced"]
    assert ex.from_json(json.dumps(values)) == experiment
    assert "max_replaced" not in to_dict(experiment, hashed=True)["data"]
    other = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, max_replaced=0.5))
    assert ex.fingerprint(other) != ex.fingerprint(experiment)


def test_a_network_larger_than_any_is_refused_at_once():
    for field, value in (("num_layers", 10**9), ("attention_head_dim", 10**9), ("sample_size", 10**6)):
        network = dataclasses.replace(experiment.network, **{field: value})
        with pytest.raises(ValueError, match=rf"network\.{field}: {value} is more than a network can have"):
            assemble(dataclasses.replace(experiment, network=network), 3)


def test_a_learned_variance_and_its_loss_make_a_training_step():
    """Through JSON, with twice the output channels; a loss of a chain refuses other times when built."""
    parts = {"parameterization": LearnedVariance(mean=V()), "loss": HybridLoss(steps=50), "times": GridTime(steps=50)}
    learned = dataclasses.replace(experiment, process=VP(), stratified_times=True, **parts)
    assert ex.from_json(ex.to_json(learned)) == learned
    trainer = assemble(learned, 3)
    images = jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32)
    places = {name: jax.ShapeDtypeStruct((16,), jnp.uint32) for name in ("index", "label")}
    state, metrics = jax.eval_shape(trainer.step(), trainer.abstract, {"image": images, **places})
    assert metrics["loss"].shape == () and jax.tree.structure(state) == jax.tree.structure(trainer.abstract)
    with pytest.raises(ValueError, match=r"HybridLoss with steps=50 needs times GridTime\(steps=50\), got LogNormal"):
        dataclasses.replace(learned, times=experiment.times)


def test_recipes_are_files_that_define_an_experiment(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        ex.load_recipe(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("experiment = 3\n")
    with pytest.raises(ValueError, match="must define `experiment`, an Experiment, got int"):
        ex.load_recipe(tmp_path / "empty.py")
