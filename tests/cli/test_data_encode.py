"""`jdiff data encode` with a tiny pipeline's folder: the networks' own numbers, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import cli
from jdiff.data.encoded import Encoded
from jdiff.data.view import View
from jdiff.interop import from_pretrained
from jdiff.pipelines import prompt_encoder
from jdiff.text import load_tokenizer
from tests.data.test_view_stream import build
from tests.pipelines.folders import stable_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return build(tmp_path_factory.mktemp("view"), "a", rows=6, sizes=[(40, 40)])


def test_what_the_networks_say_is_written(folder, view, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["data", "encode", view, "--autoencoder", folder, "--text", folder, "-o", out, "--size", 16]
    words += ["--batch-size", 4, "--json"]
    cli.main([str(word) for word in words])
    figures = json.loads(capsys.readouterr().out)
    assert figures == {"out": str(out), "images": {"encoded": 6}, "texts": {"captions": 7}}
    encoded = Encoded(out)
    assert encoded.plan["dtype"] == "float16" and encoded.plan["view"] == View(view).fingerprint
    assert encoded.plan["scaling"]["shift"] == [0.0] * 4
    np.testing.assert_allclose(encoded.plan["scaling"]["scale"], [0.18215] * 4, rtol=1e-6)

    x, y = np.meshgrid(np.arange(16), np.arange(16))
    vae, mean = from_pretrained(folder / "vae"), encoded.latents(0)[0]
    image = np.stack([(x + 0.5) * 16, (y + 0.5) * 16, np.full((16, 16), 64.0)], -1) / 127.5 - 1
    posterior = vae.network.apply(vae.params, jnp.asarray(image, jnp.float32)[None], method="encode")
    assert mean.shape == (8, 8, 4)
    # The picture is the ramp above but for rounding and the edges of the resampling.
    np.testing.assert_allclose(mean[1:-1, 1:-1], posterior.mean[0, 1:-1, 1:-1], atol=0.1 * float(posterior.mean.std()))
    spread = np.exp(posterior.log_variance[0] / 2)
    np.testing.assert_allclose(encoded.latents(0)[1][1:-1, 1:-1], spread[1:-1, 1:-1], rtol=0.1)

    text = from_pretrained(folder / "text_encoder")
    ids = load_tokenizer(folder / "tokenizer")(["a 3"]).ids
    hidden = text.network.apply(text.params, ids).last_hidden_state[0]
    np.testing.assert_allclose(encoded.text("a 3")["text"], hidden, atol=2e-3 * float(np.abs(hidden).max()))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    cli.main([str(word) for word in words])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")} == before


def test_long_captions_are_told_apart(folder):
    encoder = prompt_encoder(folder)
    assert encoder.fits("a 3") and not encoder.fits("a " * 40)


def test_wrong_words(refused, folder, view, tmp_path):
    good = {"--autoencoder": folder, "-o": tmp_path / "out", "--size": 16}
    for change, message in [
        ({"--size": 15}, "multiples of 2, the autoencoder's; got 15"),
        ({"--bucket-step": 5}, "size must be a multiple of step"),
        ({"--batch-size": 0}, "batch_size must be at least 1; got 0"),
        ({"--autoencoder": tmp_path / "none"}, "none is no folder"),
        ({"--autoencoder": folder / "unet"}, "AutoencoderKL"),
        ({"--text": folder / "vae"}, "is no pipeline: it has no model_index.json"),
    ]:
        words = [part for pair in (good | change).items() for part in pair]
        assert message in refused("data", "encode", view, *words)
    assert "v.arrow cannot be read" in refused(
        "data", "encode", tmp_path / "v.arrow", "--autoencoder", folder, "-o", "x"
    )
    assert not (tmp_path / "out").exists()
