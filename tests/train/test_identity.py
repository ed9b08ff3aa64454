"""What a run may go on with: all that its parameters depend on is the same, and what differs otherwise is named."""

import dataclasses
from pathlib import Path

import pytest

from jdiff.models import UNet
from jdiff.parallel import Mesh
from jdiff.train import run
from jdiff.train.identity import differences
from jdiff.train.paths import Moved, absolute, located, moved
from tests.recipe import experiment


def change(**values):
    return dataclasses.replace(experiment, **values)


def inside(field, **values):
    return change(**{field: dataclasses.replace(getattr(experiment, field), **values)})


STEADY = inside("optimizer", decay="none")


@pytest.mark.parametrize(
    ("after", "named"),
    [
        (change(seed=3), ["seed is 0 there and 3 here"]),
        (change(batch_size=8), ["batch_size is 16 there and 8 here"]),
        (inside("optimizer", clip=0.5), ["optimizer.clip is 1.0 there and 0.5 here"]),
        (inside("data", size=16), ["data.size is 8 there and 16 here"]),
        (inside("network", num_layers=2), ["network.num_layers is 1 there and 2 here"]),
        (change(network=UNet()), ["network.type is 'DiT' there and 'UNet' here"]),
        (change(ema_decay=0.5, swa=3), ["ema_decay is 0.999 there and 0.5 here", "swa is None there and 3 here"]),
        (inside("faults", spike=4.0), ["faults.spike is None there and 4.0 here"]),
        (change(verify_determinism=True), ["verify_determinism is False there and True here"]),
        (change(init="other"), ["init is None there and 'other' here"]),
    ],
)
def test_what_makes_another_run_is_named_with_both_values(after, named):
    assert differences(experiment, after, 10) == named


@pytest.mark.parametrize(
    "after",
    [
        change(log_every=3, checkpoint_every=7, checkpoint_minutes=1.0, sample_every=5, snapshot_every=9, name="other"),
        change(mesh=Mesh(fsdp=2), accumulate=2),
        inside("keep", latest=1, every=4),
        inside("faults", rollbacks=9, hang_seconds=5.0, check_every=3),
        inside("sampling", steps=9, guidance=3.0),
        inside("network", compute=dataclasses.replace(experiment.network.compute, remat="full", scan=False)),
        inside("data", folder="/somewhere"),
    ],
)
def test_what_may_change_while_a_run_goes_on(after):
    assert differences(experiment, after, 10) == []


def test_the_best_are_kept_by_one_measure():
    assert differences(experiment, inside("keep", metric="held_out_loss"), 10) == []
    best = inside("keep", metric="held_out_loss", best=2)
    assert differences(experiment, best, 10) == ["keep.metric is 'loss' there and 'held_out_loss' here"]


def test_steps_may_change_where_the_updates_made_would_have_been_the_same():
    more = lambda one, steps: dataclasses.replace(one, steps=steps)
    assert differences(STEADY, more(STEADY, 100), 24) == []
    assert differences(STEADY, more(STEADY, 24), 24) == []
    assert differences(STEADY, more(STEADY, 23), 24) == ["steps is 24 there and 23 here, and 24 have been made"]
    (told,) = differences(experiment, more(experiment, 100), 24)
    assert told.startswith(
        "steps is 24 there and 100 here, which with optimizer.decay=cosine changes the learning rate"
    )
    # Nothing has been made, or only what the warm-up says.
    assert differences(experiment, more(experiment, 100), 0) == []
    assert differences(experiment, more(experiment, 100), experiment.optimizer.warmup) == []


def test_many_differences_are_counted():
    other = change(seed=1, batch_size=8, ema_decay=0.5, swa=3, label_dropout=0.0, dropout=0.1, init="x")
    assert differences(experiment, other, 10)[-1] == "and 2 more"


def test_paths_are_from_the_root_where_they_lead_to_something(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path)
    given = dataclasses.replace(inside("data", folder="d"), init="runwayml/stable-diffusion")
    told = absolute(given)
    assert told.data.folder == str(tmp_path / "d") and told.init == "runwayml/stable-diffusion"
    assert absolute(inside("data", folder="missing")).data.folder == "missing"


def test_a_relative_path_of_an_older_run_is_looked_for_above_it(tmp_path, monkeypatch):
    (tmp_path / "project" / "d").mkdir(parents=True)
    directory = tmp_path / "project" / "runs" / "one"
    directory.mkdir(parents=True)
    older = inside("data", folder="d")
    run.write_atomically(directory / "config.json", run.to_json(older))
    monkeypatch.chdir(tmp_path)
    assert run.read_experiment(directory).data.folder == str(tmp_path / "project" / "d")
    (tmp_path / "d").mkdir()  # the current directory comes first
    assert located(older, directory).data.folder == str(tmp_path / "d")
    assert located(older, Path("project/runs/one")).data.folder == str(tmp_path / "d")


def test_moved_data_is_said_of_what_the_run_has():
    assert moved(inside("data", folder="/old"), Moved(folder="/new")).data.folder == "/new"
    assert moved(experiment, Moved()) == experiment
    with pytest.raises(ValueError, match=r"--data\.view: the data of this run has no view"):
        moved(inside("data", folder="/old"), Moved(view="/new"))
