"""Text to image as a user of a folder sees it; tests/interop holds the comparison with diffusers' pipelines."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from jdiff import TextToImage, cli
from jdiff.interop import from_pretrained
from tests.pipelines.folders import stable_diffusion

LONG = "a red cube and a blue ball and a green house and an old tree on a great mountain"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def pipeline(folder):
    return TextToImage.from_pretrained(folder)


def test_a_picture_is_the_same_alone_and_among_others(pipeline):
    three = pipeline(["a cat", "two birds", "a sea"], seeds=[5, 6, 5], steps=4)
    alone = pipeline(["two birds"], seeds=[6], steps=4)
    assert three.shape == (3, 16, 16, 3) and three.dtype == np.float32 and np.abs(three).max() <= 1
    np.testing.assert_allclose(three[1], alone[0], atol=1e-4)
    assert np.abs(three[0] - three[2]).max() > 1e-3  # other words
    assert np.abs(pipeline(["two birds"], seeds=[7], steps=4) - alone).max() > 1e-2


def test_prompts_seeds_and_guidance_compile_nothing(pipeline):
    pipeline(["a cat"], seeds=[0], steps=4)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        names = []
        patch.setattr("jax._src.interpreters.pxla.logger.log", lambda level, text, *args: names.append(args[0]))
        first = pipeline(["a cat"], seeds=[0], steps=4)
        other = pipeline(["birds at night"], seeds=[3], steps=4, guidance=2.0, negative=["a sea"])
    assert not names
    assert np.abs(first - other).max() > 1e-3


def test_guidance_moves_from_the_negative_prompt_and_one_is_off(pipeline):
    plain = pipeline(["a cat"], seeds=[0], steps=4, guidance=1)
    np.testing.assert_allclose(pipeline(["a cat"], seeds=[0], steps=4, guidance=1.0001), plain, atol=1e-3)
    np.testing.assert_allclose(pipeline(["a cat"], seeds=[0], steps=4, negative=["a cat"]), plain, atol=1e-3)
    assert np.abs(pipeline(["a cat"], seeds=[0], steps=4, negative=["a sea"]) - plain).max() > 1e-3


def test_long_prompts_are_refused_or_read_whole(pipeline):
    with pytest.raises(ValueError, match=r"prompts\[0\]: \d+ tokens, and the encoder takes 14"):
        pipeline([LONG], seeds=[0], steps=4)
    whole = pipeline([LONG], seeds=[0], steps=4, long="chunk")
    cut = pipeline([LONG.rsplit(" ", 1)[0] + " cat"], seeds=[0], steps=4, long="chunk")
    assert np.abs(whole - cut).max() > 1e-4
    short = pipeline(["a cat"], seeds=[0], steps=4)
    np.testing.assert_allclose(pipeline(["a cat"], seeds=[0], steps=4, long="chunk"), short, atol=1e-5)


def test_weights_of_words(pipeline):
    plain = pipeline(["a red cube"], seeds=[0], steps=4)
    np.testing.assert_allclose(pipeline(["a (red:1.0) cube"], seeds=[0], steps=4, weights=True), plain, atol=1e-5)
    assert np.abs(pipeline(["a (red:1.8) cube"], seeds=[0], steps=4, weights=True) - plain).max() > 1e-4


def test_any_solver_and_size(pipeline):
    images = pipeline(["a cat"], seeds=[0], steps=6, solver="dpmpp_2m", height=24, width=16)
    assert images.shape == (1, 24, 16, 3) and np.isfinite(images).all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompts": "a cat"}, "lists of strings"),
        ({"prompts": []}, "prompts: there is none"),
        ({"seeds": [0, 1]}, "seeds: 2 of them for 1 prompts"),
        ({"negative": []}, "negative: 0 of them for 1 prompts"),
        ({"height": 18}, "height and width: 18 is not a positive multiple of 4"),
        ({"solver": "magic"}, "solver: there is no 'magic'; there are ddpm"),
        ({"steps": 0}, "steps must lie between 1 and the chain's 1000, got 0"),
        ({"latents": np.zeros((1, 4, 4, 4))}, r"latents: shape \(1, 4, 4, 4\), these sizes take \(1, 8, 8, 4\)"),
        ({"long": "cut"}, "'cut' is not one of refuse, chunk"),
    ],
)
def test_what_does_not_fit_is_named(pipeline, arguments, named):
    given = {"prompts": ["a cat"], "seeds": [0], "steps": 4} | arguments
    with pytest.raises(ValueError, match=named):
        pipeline(given.pop("prompts"), **given)


def test_a_saved_pipeline_is_the_pipeline(pipeline, folder, tmp_path):
    pipeline.save_pretrained(tmp_path / "copy")
    again = TextToImage.from_pretrained(tmp_path / "copy")
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, pipeline.params))
    given = {"seeds": [0], "steps": 4}
    np.testing.assert_array_equal(again(["a cat"], **given), pipeline(["a cat"], **given))
    with pytest.raises(ValueError, match="was read from"):
        pipeline.save_pretrained(folder)
    assert from_pretrained(folder / "unet").differences == []


def test_folders_that_do_not_fit_are_refused(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    index = json.loads((broken / "model_index.json").read_text())

    def refused(changed, named):
        (broken / "model_index.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=named):
            TextToImage.from_pretrained(broken)

    refused(index | {"_class_name": "KandinskyPipeline"}, "is a KandinskyPipeline; there are StableDiffusionPipeline")
    refused(index | {"prior": ["diffusers", "Prior"]}, r"parts missing none, unknown \['prior'\]")
    refused({k: v for k, v in index.items() if k != "vae"}, r"parts missing \['vae'\], unknown none")
    with pytest.raises(FileNotFoundError, match="no folder, and no name of a repository"):
        TextToImage.from_pretrained(tmp_path / "nothing" / "here")


def test_the_command_draws_pngs(folder, tmp_path, capsys):
    words = ["sample", "--from", str(folder), "a cat", "two birds", "--n", "2", "--steps", "3", "--chunk", "3"]
    cli.main([*words, "--out", str(tmp_path / "drawn"), "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["n"] == 4 and printed["steps"] == 3
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == [*(f"{i:05d}.png" for i in range(4)), "grid.png"]
    assert Image.open(tmp_path / "drawn" / "00000.png").size == (16, 16)
    with pytest.raises(SystemExit):
        cli.main(["sample", "--from", str(folder)])
    assert "a prompt is missing" in capsys.readouterr().err
