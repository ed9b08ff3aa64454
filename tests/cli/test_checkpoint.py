"""`jdiff checkpoint` and `jdiff replay`: what they say of a run that is whole, and of one that is not."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jdiff import cli
from jdiff.train.restore import open_run
from tests import recipe


def said(capsys, *words):
    capsys.readouterr()
    cli.main([str(word) for word in words])
    return json.loads(capsys.readouterr().out)


def spoil(run, step):
    """Changes a byte here and there of the largest file of a checkpoint."""
    files = [path for path in (run / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[len(data) // 50 :: len(data) // 20] ^= 1
    path.write_bytes(data.tobytes())


def test_list_and_verify(finished, capsys):
    steps = open_run(finished).steps
    rows = said(capsys, "checkpoint", "list", finished, "--json")
    assert [row["step"] for row in rows] == steps and len({row["digest"] for row in rows}) == len(steps) > 1
    for row in rows:
        files = (finished / "checkpoints" / str(row["step"])).rglob("*")
        assert row["bytes"] == sum(path.stat().st_size for path in files if path.is_file())
    assert said(capsys, "checkpoint", "verify", finished, "--json") == [{"step": n, "whole": True} for n in steps]
    spoil(finished, steps[0])
    with pytest.raises(SystemExit) as stop:
        said(capsys, "checkpoint", "verify", finished)
    assert stop.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert "is damaged" in lines[0] and [line.split()[-1] for line in lines[1:]] == ["whole"] * (len(steps) - 1)


@pytest.mark.parametrize("raw", [False, True])
def test_export(finished, tmp_path, capsys, raw):
    run = open_run(finished)
    words = ["checkpoint", "export", finished, "-o", tmp_path / "out", *(["--raw"] if raw else [])]
    assert said(capsys, *words, "--json")["step"] == run.steps[-1]
    tensors = load_file(tmp_path / "out" / "parameters.safetensors")
    state = run.state()
    params = state.params if raw else state.ema
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_array_equal(tensors.pop("/".join(key.key for key in path)), leaf)
    assert not tensors
    assert (tmp_path / "out" / "config.json").read_text() == (finished / "config.json").read_text()


def test_refusals(finished, tmp_path, refused):
    assert "has no checkpoint of step 5; it has [" in refused(
        "checkpoint", "export", finished, "-o", tmp_path, "--step", 5
    )
    assert "there is no verb 'mend' of jdiff checkpoint; there are list, verify, export" in refused(
        "checkpoint", "mend"
    )
    assert "is not a run directory" in refused("checkpoint", "list", tmp_path)
    assert "is no replay bundle: it has no fault.json" in refused("replay", finished)


def test_profiles_are_put_together_after_training(tmp_path, capsys, refused, finished):
    words = ["--profiles", "0.05", "0.2", "--snapshot-every", "8", "--swa", "20", "--sample-every", "1000"]
    cli.main(["train", recipe.__file__, "--out", str(tmp_path / "profiles"), *words])
    run = open_run(tmp_path / "profiles")
    state = run.state()

    def exported(*words):
        out = tmp_path / "-".join(["out", *map(str, words)])
        said(capsys, "checkpoint", "export", run.directory, "-o", out, "--json", *words)
        return load_file(out / "parameters.safetensors")

    for width in ("0.05", "0.2"):
        tensors = exported("--sigma-rel", width)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.profiles[width]):
            np.testing.assert_allclose(tensors.pop("/".join(key.key for key in path)), leaf, rtol=1e-4, atol=1e-5)
        assert not tensors
    narrow, middle, wide = (exported("--sigma-rel", width) for width in ("0.05", "0.1", "0.2"))
    distance = lambda a, b: sum(float(np.square(a[name] - b[name]).sum()) for name in a)
    assert 0 < distance(narrow, middle) < distance(narrow, wide)
    earlier = exported("--sigma-rel", "0.05", "--step", "8")
    assert distance(earlier, narrow) > 0

    drawn = ["sample", run.directory, "--n", "1", "--steps", "2", "--json"]
    assert said(capsys, *drawn, "--sigma-rel", "0.1", "--out", tmp_path / "drawn")["step"] == 24
    assert "has no snapshot of step 9; it has [8, 16, 24]" in refused(
        "checkpoint", "export", run.directory, "-o", tmp_path / "no", "--sigma-rel", "0.1", "--step", "9"
    )
    assert "it has none (profiles)" in refused("sample", finished, "--sigma-rel", "0.1")
    assert "sigma_rel must be above 0" in refused("sample", run.directory, "--sigma-rel", "0.5")
