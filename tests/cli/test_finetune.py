"""Training that starts from a run or a folder: what is taken, what is new, and what is refused."""

import json

import jax
import numpy as np

from jdiff import cli
from jdiff.interop import save_pretrained
from jdiff.models import DiT, functional
from jdiff.train.restore import open_run
from tests import recipe
from tests.models.draws import drawn

SHORT = ["--steps", "1", "--sampling.steps", "2", "--optimizer.learning-rate", "1e-12"]  # it stays where it starts


def flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def start(directory, *words):
    cli.main(["train", recipe.__file__, *SHORT, "--out", str(directory), *map(str, words)])
    return flat(open_run(directory).state().params), json.loads((directory / "init.json").read_text())


def test_from_a_run_where_the_network_is_another(tmp_path, capsys):
    cli.main(["train", recipe.__file__, "--steps", "8", "--sampling.steps", "2", "--out", str(tmp_path / "base")])
    base = flat(open_run(tmp_path / "base").state().ema)
    same, told = start(tmp_path / "same", "--init", tmp_path / "base", "--mesh.fsdp", 2)
    assert told["new"] == {} and told["unused"] == [] and set(told["taken"]) == set(base)
    for name, leaf in base.items():
        np.testing.assert_allclose(same[name], leaf, atol=1e-9)
    capsys.readouterr()
    # Twice the patch: what patches are read and written by is new, the blocks are the same.
    other, told = start(tmp_path / "other", "--init", tmp_path / "base", "--network.patch-size", 2)
    assert set(told["new"]) == {"pos_embed/proj/kernel", "proj_out_2/kernel", "proj_out_2/bias"}
    assert told["new"]["pos_embed/proj/kernel"] == "(4, 4, 3, 16) there and (2, 2, 3, 16) here"
    for name in told["taken"]:
        np.testing.assert_allclose(other[name], base[name], atol=1e-9)
    err = capsys.readouterr().err
    assert f"{len(base) - 3} of {len(base)} arrays are those of {tmp_path / 'base'}; new: " in err


def test_from_a_folder_of_diffusers(tmp_path):
    network = recipe.experiment.network
    config = DiT(
        patch_size=4,
        num_layers=1,
        num_attention_heads=network.num_attention_heads,
        attention_head_dim=network.attention_head_dim,
        in_channels=3,
        sample_size=8,
        num_embeds_ada_norm=4,
    )
    given = drawn(functional(config.module), scale=0.5)
    save_pretrained(tmp_path / "folder", config, given)
    params, told = start(tmp_path / "run", "--init", tmp_path / "folder")
    assert [name for name in told["new"] if "class_embedder" not in name] == [] and told["taken"]
    for name in told["taken"]:
        np.testing.assert_allclose(params[name], flat(given)[name], atol=1e-9)


def test_a_run_that_goes_on_does_not_ask_for_it(tmp_path, refused, finished):
    words = ["train", recipe.__file__, "--out", tmp_path / "new", "--init", tmp_path / "gone"]
    assert "gone" in refused(*words)
    other = [*words[:-1], finished, "--network", "UNet", "--data.size", "8"]
    assert "none of the" in refused(*other, "--out", tmp_path / "other")
