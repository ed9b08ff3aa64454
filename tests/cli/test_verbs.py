"""The verbs on a finished run: what they write and what they print."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from jdiff import cli
from jdiff.data import OpenMojiSource
from tests import recipe


def words(*parts):
    return [str(part) for part in parts]


def test_train_leaves_a_run(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.json", "manifest.json", "metrics.jsonl", "throughput.jsonl", "checkpoints", "samples"}
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(2, 25, 2))
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records)
    assert records[0]["learning_rate"] == pytest.approx(0.005) and max(r["learning_rate"] for r in records) <= 0.01
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["16", "20", "24"]
    assert [path.name for path in (finished / "samples").iterdir()] == ["step_0000012.png"]
    for name, size in (("samples.png", 8 * 9 - 1), ("nearest.png", 5 * 9 - 1)):
        assert Image.open(finished / name).size[0] == 12 * size
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["data"]["rows"] == len(OpenMojiSource(subset="faces", split="train", size=8))
    assert manifest["packages"].keys() >= {"jax", "flax", "optax"} and manifest["seed"] == 0


def test_starting_a_finished_run_again_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in finished.glob("*.jsonl")}
    cli.main(words("train", recipe.__file__, "--out", finished, "--json"))
    printed = json.loads(capsys.readouterr().out)
    assert printed["step"] == 24 and printed["directory"] == str(finished)
    assert {path: path.read_bytes() for path in finished.glob("*.jsonl")} == before


def test_sample(finished, capsys):
    command = words(
        "sample", finished, "--seed", 3, "--class", "cat", "--guidance", 2, "--solver", "heun", "--steps", 3
    )
    cli.main([*command, "--n", "5", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["n"] == 5 and figures["solver"] == "heun" and figures["step"] == 24
    out = finished / "draws" / "seed3_heun3_guidance2_cat"
    assert sorted(path.name for path in out.iterdir()) == [*(f"{i:05d}.png" for i in range(5)), "grid.png"]
    assert figures["picture"] == str(out / "grid.png")
    one = np.asarray(Image.open(out / "00004.png")).astype(int)
    assert one.shape == (8, 8, 3)
    cli.main([*command, "--n", "20", "--out", str(finished / "more")])
    assert np.abs(one - np.asarray(Image.open(finished / "more" / "00004.png"))).max() <= 1
    assert np.abs(one - np.asarray(Image.open(out / "00003.png"))).max() > 1


def test_evaluate(finished, capsys):
    cli.main(words("evaluate", finished, "--n", 32, "--seeds", 2, "--levels", 3, "--json"))
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((finished / "evaluate.json").read_text())
    assert [level["noise"] for level in figures["loss"]] == pytest.approx([80, 2.5152, 0.002], rel=1e-3)
    assert figures["features"] == "random-conv-64" and figures["samples"] == 32
    assert len(figures["frechet"]) == len(figures["mmd_floor"]) == 2
    assert min(figures["frechet"]) > max(figures["frechet_floor"])  # a network of 24 steps is worse than real images
    assert Image.open(finished / "evaluate.png").size[0] > 400
    cli.main(words("evaluate", finished, "--n", 32, "--seeds", 1, "--levels", 3))
    assert "32 training images  Frechet" in capsys.readouterr().out


def test_a_run_by_pmap_is_the_run(finished, tmp_path):
    """Up to the order of sums."""
    cli.main(words("train", recipe.__file__, "--mesh.strategy", "pmap", "--out", tmp_path / "mapped"))
    one, other = (
        [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        for directory in (finished, tmp_path / "mapped")
    )
    for name in ("step", "loss", "grad_norm", "learning_rate", "skipped"):
        np.testing.assert_allclose([line[name] for line in other], [line[name] for line in one], rtol=1e-4)


def test_a_run_goes_on_on_another_mesh_and_info_tells_how_it_lies(finished, capsys):
    checkpoints = {path: path.read_bytes() for path in (finished / "checkpoints").rglob("*") if path.is_file()}
    cli.main(words("train", recipe.__file__, "--mesh.tensor", 2, "--mesh.fsdp", 2, "--out", finished))
    assert checkpoints == {path: path.read_bytes() for path in checkpoints}
    capsys.readouterr()
    cli.main(words("info", finished, "--layout"))
    lines = [re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    said, small = {path: told for path, *told in lines}, "smaller than 16384 values"
    attention = "transformer_blocks/each/attn1/"
    assert said[f"{attention}to_q/kernel"] == ["(1, 16, 16)", "None, None, tensor", small]
    assert said[f"{attention}to_out/kernel"] == ["(1, 16, 16)", "None, tensor", small]
    assert said["proj_out_1/bias"] == ["(32,)", "copied", small]
    cli.main(words("info", finished, "--json"))
    layout = json.loads(capsys.readouterr().out)["layout"]
    assert [row["path"] for row in layout] == list(said)


def test_info(finished, capsys):
    cli.main(words("info", finished, "--json"))
    figures = json.loads(capsys.readouterr().out)
    assert figures["parameters"] == sum(figures["parameters_by_module"].values()) > 1000
    assert figures["checkpoints"] == [16, 20, 24]
    # Forward and backward of the matrix products alone are 6 multiply-adds a parameter and token.
    assert 1e6 < figures["flops_a_step"] < 1e9
    cli.main(words("info", finished))
    assert f"{figures['parameters']:,}" in capsys.readouterr().out


def test_help_names_every_field(capsys):
    for command, expected in [
        (["--help"], ["train", "sample", "evaluate", "info"]),
        (["train", "--help"], ["RECIPE.py"]),
        (
            ["train", recipe.__file__, "--help"],
            ["--data.folder", "--process.sigma-max", "--optimizer.clip", "--mesh.fsdp", "--process VP|VE|EDM"],
        ),
        (["sample", "--help"], ["--class", "--guidance", "--solver"]),
    ]:
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        assert not stop.value.code
        out = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert all(text in out for text in expected), (command, out)


def test_another_part_by_its_name(tmp_path):
    """Process, parameterization, loss, times and grid in one go, and a field of the new part."""
    parts = {"process": "RectifiedFlow", "parameterization": "Velocity", "loss": "VelocityLoss", "times": "UniformTime"}
    chosen = [word for name, value in parts.items() for word in (f"--{name}", value)]
    more = ["--process.t-min", "0.01", "--sampling.grid", "uniform", "--steps", "2", "--out", str(tmp_path / "flow")]
    cli.main(["train", recipe.__file__, *chosen, *more])
    config = json.loads((tmp_path / "flow" / "config.json").read_text())
    assert config["process"] == {"type": "RectifiedFlow", "t_min": 0.01}
    assert config["loss"] == {"type": "VelocityLoss"}


def test_a_folder_of_images_enters_by_the_same_door(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("one", "two"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(30):
            picture = Image.fromarray(generator.integers(0, 255, (20, 12, 3), dtype=np.uint8))
            picture.save(tmp_path / "images" / name / f"{i}.png")
    out = tmp_path / "run"
    cli.main(words("train", recipe.__file__, "--data.folder", tmp_path / "images", "--steps", 2, "--out", out))
    assert json.loads((out / "manifest.json").read_text())["data"]["classes"] == ["one", "two"]
