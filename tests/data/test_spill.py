"""Arrays in files without a name."""

import os

import numpy as np
import pytest

from jdiff.data.spill import Spill


def test_it_is_the_array_that_it_stands_for(tmp_path):
    spill, array = Spill((5, 3), np.uint16, tmp_path), np.zeros((5, 3), np.uint16)
    for part, values in ((slice(1, 3), 7), ([4, 0], [[1, 2, 3], [4, 5, 6]])):
        spill[part] = values
        array[part] = values
    np.testing.assert_array_equal(spill[:], array)
    assert len(spill) == 5 and not any(tmp_path.iterdir())
    assert len(Spill((0, 3), np.uint16)[:]) == 0


def test_what_has_no_room_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(OSError, match="no room for 8,000,000,000,000,000 bytes of temporary data") as refused:
        Spill((10**15,), np.uint64, tmp_path)
    assert refused.value.filename == str(tmp_path)


def test_its_room_is_taken_at_once(tmp_path):
    """So that a disk which fills up later does not end the process in the midst of a write."""
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system reserves no room")
    spill = Spill((1 << 20,), np.uint8, tmp_path)
    (held,) = [
        os.stat(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{name}").startswith(str(tmp_path))
    ]
    assert held.st_blocks * 512 >= len(spill)
