"""Time grids against what makes them equal steps."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.processes import EDM, RectifiedFlow
from jdiff.samplers import GRIDS, karras, log_snr, uniform
from tests.table import PROCESSES

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("grid", GRIDS)
def test_grids_fall_over_the_whole_span_in_equal_steps(grid, name):
    process = PROCESSES[name]
    if name == "flow" and grid != "uniform":
        with pytest.raises(ValueError, match=r"finite log-SNR at both ends of RectifiedFlow.*use the uniform grid"):
            GRIDS[grid](process, 5)
        return
    for dtype in (jnp.float32, jnp.float64):
        times = GRIDS[grid](process, 9, dtype=dtype)
        assert times.shape == (9,) and times.dtype == dtype
        t_min, t_max = process.time_span
        np.testing.assert_array_equal(times[jnp.array([0, -1])], jnp.array([t_max, t_min], dtype))
        assert (jnp.diff(times) < 0).all()
    level = np.asarray(process.sigma(times) / process.alpha(times))
    steps = np.diff({"uniform": times, "log_snr": np.log(level), "karras": level ** (1 / 7)}[grid])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_karras_levels_of_the_paper():
    """EDM's second-order sampler on CIFAR-10 starts at 80 and falls to 57.586 in the first of 18 levels."""
    times = karras(EDM(), 18, dtype=jnp.float64)
    # (80^(1/7) + (0.002^(1/7) - 80^(1/7)) / 17)^7 by hand in decimal arithmetic
    np.testing.assert_allclose(times[1], 57.5859, rtol=1e-5)


def test_too_short():
    for grid in (uniform, karras, log_snr):
        with pytest.raises(ValueError, match="n >= 2 times, got 1"):
            grid(EDM(), 1)
    assert uniform(RectifiedFlow(), 2).tolist() == pytest.approx([1.0, 1e-3])
