"""Training on latents and captions, from the command line: a run, its pictures, a prompt, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from jdiff import cli
from jdiff.experiment import from_json
from tests.data.test_view_stream import build
from tests.pipelines.folders import LENGTH, stable_diffusion

RECIPE = """
import dataclasses
from jdiff.data import Latents
from jdiff.pipelines import Sampling
from tests import recipe
from tests.pipelines.folders import LENGTH, NETWORKS

experiment = dataclasses.replace(
    recipe.experiment,
    data=Latents(folder={out!r}, pipeline={pipeline!r}, size=8, tokens=LENGTH),
    network=NETWORKS["unet"],
    sampling=Sampling(steps=2, guidance=2.0),
    batch_size=8,
    steps=6,
    checkpoint_every=4,
    sample_every=4,
    label_dropout=0.2,
)
"""


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    root = tmp_path_factory.mktemp("sd")
    folder = stable_diffusion(root / "pipeline")
    view = build(root / "view", "a", rows=24, sizes=[(40, 40)])
    words = ["data", "encode", view, "--autoencoder", folder, "--text", folder, "-o", root / "out", "--size", 16]
    cli.main([str(word) for word in words])
    (root / "recipe.py").write_text(RECIPE.format(out=str(root / "out"), pipeline=str(folder)))
    return root


@pytest.fixture(scope="module")
def run(encoded):
    cli.main(["train", str(encoded / "recipe.py"), "--out", str(encoded / "run")])
    return encoded / "run"


def test_a_run_on_latents_shows_images(run):
    assert from_json((run / "config.json").read_text()).data.tokens == LENGTH
    for name, rows in (("samples.png", 8), ("samples/step_0000004.png", 2)):
        with Image.open(run / name) as picture:
            assert picture.size == ((16 * 8 + 7) * 6, (16 * rows + rows - 1) * 6)  # 16 pixels each, six times as large
    assert (run / "trajectory.png").exists() and (run / "nearest.png").exists()
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and np.isfinite(losses).all()


def test_info_knows_what_an_update_takes(run, capsys):
    capsys.readouterr()
    cli.main(["info", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["flops_a_step"] > 1e6


def test_prompts_are_drawn(run, tmp_path, capsys):
    pictures = {}
    for prompt in ("a 3", "a 20"):
        out = tmp_path / prompt
        words = ["sample", run, "--prompt", prompt, "--n", 2, "--out", out, "--json", "--chunk", 2]
        capsys.readouterr()
        cli.main([str(word) for word in words])
        assert json.loads(capsys.readouterr().out)["step"] == 6
        pictures[prompt] = np.asarray(Image.open(out / "00001.png")).astype(int)
        assert pictures[prompt].shape == (16, 16, 3)
    assert np.abs(pictures["a 3"] - pictures["a 20"]).max() > 0


def test_what_does_not_fit_is_refused(run, encoded, refused, finished, tmp_path):
    assert "takes no captions, and so no prompts" in refused("sample", finished, "--prompt", "a cube")
    assert "trained on latents, and this measures images" in refused("evaluate", run)
    start = ["train", encoded / "recipe.py", "--out", tmp_path / "new"]
    assert "dropout and stochastic_depth: a UNet2DCondition is trained without" in refused(*start, "--dropout", "0.1")
    assert "a UNet2DCondition takes captions, and data has 0 tokens" in refused(*start, "--data.tokens", "0")
    other = stable_diffusion(tmp_path / "other")
    config = json.loads((other / "vae" / "config.json").read_text()) | {"scaling_factor": 0.5}
    (other / "vae" / "config.json").write_text(json.dumps(config))
    assert "its autoencoder is not the one that made" in refused(*start, "--data.pipeline", other)
    assert not (tmp_path / "new").exists()
