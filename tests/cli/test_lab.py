"""`jdiff lab`: published errors, orders, searched grids that are loaded again, a picture, and refusals."""

import json

import pytest
from PIL import Image

from jdiff import cli


def lab(capsys, tmp_path, *words):
    """The figures of a run of the command."""
    capsys.readouterr()
    cli.main(["lab", "--json", "--out", str(tmp_path / "lab.png"), *words])
    return json.loads(capsys.readouterr().out)


def test_errors_of_the_ring(capsys, tmp_path):
    """Root mean square errors measured with other code (diffusers and k-diffusion's formulas in NumPy), to 10 %: other
    starts were drawn."""
    figures = lab(capsys, tmp_path, "--solver", "ddim,heun", "--nfe", "10,20")
    found = {(row["solver"], row["nfe"]): row["error"] for row in figures["rows"]}
    for key, error in {("ddim", 10): 7.0e-2, ("ddim", 20): 3.4e-2, ("heun", 20): 6.0e-2}.items():
        assert found[key] == pytest.approx(error, rel=0.1)
    assert Image.open(tmp_path / "lab.png").size[0] > 800


def test_orders(capsys, tmp_path):
    figures = lab(capsys, tmp_path, "--order", "--solver", "ddim", "--process", "vp", "--target", "gaussian")
    (row,) = figures["rows"]
    assert row["documented"]["global"] == 1 and row["orders"]["global"]["order"] == pytest.approx(1, abs=0.2)
    assert row["orders"]["global"]["half_width"] < 0.2


def test_a_searched_grid_is_written_and_used(capsys, tmp_path):
    words = ["--solver", "dpmpp_2m", "--nfe", "5", "--starts", "64"]
    standard = lab(capsys, tmp_path, *words)["rows"][0]["error"]
    searched = lab(capsys, tmp_path, *words, "--search", str(tmp_path / "grids"))["rows"][0]["error"]
    (path,) = (tmp_path / "grids").iterdir()
    assert path.name == "ring8_edm_dpmpp_2m_5.json"
    assert searched < standard / 2
    again = lab(capsys, tmp_path, *words, "--grid", str(path))["rows"][0]["error"]
    assert again == pytest.approx(searched, rel=1e-6)


def test_methods_with_noise_show_their_moments(capsys, tmp_path):
    figures = lab(
        capsys,
        tmp_path,
        "--solver",
        "ddpm",
        "--nfe",
        "20",
        "--target",
        "gaussian",
        "--process",
        "vp",
        "--dtype",
        "float32",
    )
    (row,) = figures["rows"]
    assert row["error"] > row["floor"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--solver nope", "there is no solver 'nope'; there are ddpm"),
        ("--process nope", "there is no process 'nope'; there are vp"),
        ("--target ring", "there is no target 'ring'; there are ringK"),
        ("--grid nope", "there is no grid 'nope'; there are uniform"),
        ("--grid nope.json", "nope.json"),
        ("--nfe 5,x", "--nfe needs positive numbers separated by commas, got '5,x'"),
        ("--solver heun --nfe 1", "--nfe 1 is not enough for one step of heun, which takes 2"),
        ("--solver ,", "--solver needs names separated by commas, got ','"),
        ("--starts 1", "--starts must be at least 2, got 1"),
        ("--process flow", "finite log-SNR at both ends of RectifiedFlow"),
        ("--process edm --grid trailing", "T-step chain"),
        ("--solver ddpm --search grids", "--search needs solvers without noise, got ddpm"),
    ],
)
def test_what_does_not_exist_is_refused(refused, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused("lab", *words.split())
    assert not list(tmp_path.iterdir())
