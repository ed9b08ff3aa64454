"""Pictures against arrays made by hand."""

import numpy as np
import pytest
from PIL import Image

from jdiff import pictures


def test_tiles_lie_row_by_row():
    images = np.stack([np.full((2, 2, 3), value) for value in (-1.0, 0.0, 3.0)])
    sheet = pictures.tile(images, 2)
    assert sheet.shape == (5, 5, 3)
    assert (sheet[:2, :2] == 0).all() and (sheet[:2, 3:] == 128).all() and (sheet[3:, :2] == 255).all()
    assert (sheet[2] == 255).all()


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.png"
    pictures.save(np.zeros((2, 3, 3), np.uint8), path, enlarge=4)
    assert Image.open(path).size == (12, 8)
    with pytest.raises(TypeError):
        pictures.save(np.zeros((2, 3, 7), np.uint8), path)
    assert Image.open(path).size == (12, 8)
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".png"] == ["a.png"]


def test_nearest_finds_the_copy_and_its_mirror_image():
    images = np.random.default_rng(0).normal(size=(50, 4, 4, 3))
    queries = np.stack([images[7] + 0.01, images[31][:, ::-1]])
    assert pictures.nearest(queries, images, 3)[:, 0].tolist() == [7, 31]


def test_trajectories_go_from_noise_to_image():
    path = np.stack([np.full((2, 4, 4, 3), value) for value in (50.0, 1.0, -1.0)])
    sheet = pictures.trajectory_sheet(path, np.array([100.0, 2.0]))
    assert sheet.shape == (9, 14, 3)
    assert [int(sheet[0, x, 0]) for x in (0, 5, 10)] == [191, 191, 0]
