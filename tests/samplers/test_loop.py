"""The loop around the solvers: devices, sources of noise, and what it refuses."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import rng
from jdiff.prediction import Prediction
from jdiff.processes import VP, RectifiedFlow
from jdiff.samplers import (
    DDIM,
    DDPM,
    SOLVERS,
    Euler,
    brownian,
    checked,
    independent,
    integrate,
    karras,
    log_snr,
    sample,
    uniform,
)
from tests.samplers.tools import (
    SMOOTH,
    keys_of,
)
from tests.table import anisotropic


def test_noise_is_the_same_on_eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    run = jax.jit(lambda index: rng.normal(rng.per_example(jax.random.key(3), index), jnp.zeros((64, 5, 3))))
    one = run(jnp.arange(64))
    eight = run(jax.device_put(jnp.arange(64), sharding))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(one, eight)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m", "sa_solver", "restart"])
def test_samples_are_the_same_on_eight_devices(name):
    """The prior's draw to the bit, the samples to rounding."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    target, grid = anisotropic(jnp.float32), karras(VP(), 10)

    def draw(index):
        keys = rng.per_example(jax.random.key(3), index)
        return sample(keys, target.denoiser(VP()), VP(), SOLVERS[name], grid, (2,), trajectory=True)

    run = jax.jit(draw)
    one, one_path = run(jnp.arange(64))
    eight, eight_path = run(jax.device_put(jnp.arange(64), sharding))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(one_path[0], eight_path[0])
    np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_increments_of_a_brownian_path():
    """Standard normal each, independent where they do not overlap, and adding up where they do."""
    process, keys = VP(), keys_of(4096)
    noise = brownian(keys, process, jnp.zeros((4096, 1)))(0)
    times = jnp.array([1.0, 0.8, 0.3, 0.001])
    parts = [noise.between(t, s)[:, 0] for t, s in itertools.pairwise(times)]
    np.testing.assert_allclose(np.cov(parts), np.eye(3), atol=4 * np.sqrt(2 / 4096))
    snr = np.exp(process.log_snr(times))
    whole = sum(np.sqrt(b - a) * part for a, b, part in zip(snr[:-1], snr[1:], parts, strict=True))
    np.testing.assert_allclose(whole / np.sqrt(snr[-1] - snr[0]), noise.between(times[0], times[-1])[:, 0], rtol=1e-6)
    assert not np.array_equal(noise.fresh(), noise.fresh(part=1))


@pytest.mark.usefixtures("x64")
def test_one_brownian_path_gives_one_sample_at_any_number_of_steps():
    process, target = SMOOTH["vp"][0], anisotropic()
    draw = lambda n, noise: sample(
        keys_of(16), target.denoiser(process), process, DDPM(), log_snr(process, n, jnp.float64), (2,), noise=noise
    )
    one, other = draw(129, brownian), draw(65, brownian)
    assert np.sqrt(np.mean((one - other) ** 2)) < 0.05
    assert np.sqrt(np.mean((one - draw(129, independent)) ** 2)) > 0.3


BAD_GRIDS = {
    "rising": ([0.5, 0.7, 0.1], "must decrease from each to the next"),
    "equal": ([0.5, 0.5, 0.1], "must decrease from each to the next"),
    "above": ([1.2, 0.7, 0.1], r"must lie in the span of VP, from 0\.001\d* to 1\.0, got \[1\.2"),
    "below": ([0.9, 0.7, 1e-5], "must lie in the span of VP"),
    "not a number": ([0.9, float("nan"), 0.1], "must decrease"),
}


@pytest.mark.parametrize("kind", BAD_GRIDS)
def test_bad_grids_are_named(kind):
    times, message = BAD_GRIDS[kind]
    denoise, grid = anisotropic(jnp.float32).denoiser(VP()), jnp.float32(times)
    run = lambda grid: sample(keys_of(2), denoise, VP(), DDIM(), grid, (2,))
    with pytest.raises(ValueError, match=message):
        run(grid)
    with pytest.raises(ValueError, match=message):
        checked(run)(grid)


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if solver.needs_signal])
def test_solvers_that_need_signal_refuse_to_start_without(name):
    process, denoise = RectifiedFlow(), anisotropic(jnp.float32).denoiser(RectifiedFlow())
    run = lambda grid: sample(keys_of(2), denoise, process, SOLVERS[name], grid, (2,))
    with pytest.raises(ValueError, match=r"cannot start at t = 1\.0, where the signal-to-noise ratio is zero"):
        run(uniform(process, 4))
    assert np.isfinite(run(0.9 * uniform(process, 4) + 0.001)).all()


def test_noise_cannot_be_inverted():
    denoise = anisotropic(jnp.float32).denoiser(VP())
    for solver in (DDPM(), DDIM(eta=0.5)):
        with pytest.raises(ValueError, match=r"increase, for a method without noise.*got \[0\.1 0\.4\]"):
            integrate(keys_of(2), jnp.ones((2, 2)), denoise, VP(), solver, jnp.float32([0.1, 0.4]))


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", ["x0", "eps"])
def test_values_that_are_not_finite_are_named(name, value):
    def denoise(x, t):
        broken = jnp.where(t < 0.5, x.at[1, 1].set(float(value)), x)
        return dataclasses.replace(Prediction(x, x), **{name: broken})

    run = checked(lambda grid: sample(keys_of(3), denoise, VP(), DDIM(), grid, (2,)))
    with pytest.raises(ValueError, match=rf"predicted {value} as {name} of sample 1 at t = 0\.4\d*; it must be finite"):
        run(jnp.float32([0.9, 0.6, 0.4, 0.1]))
    assert np.isfinite(run(jnp.float32([0.9, 0.8, 0.7, 0.6]))).all()


def test_bad_arguments_are_named():
    denoise = anisotropic(jnp.float32).denoiser(VP())
    with pytest.raises(ValueError, match=r"grid must have shape \[n\] with n >= 2, got \(1,\)"):
        sample(keys_of(2), denoise, VP(), Euler(), jnp.ones(1), (2,))
    with pytest.raises(ValueError, match=r"one key a sample, got \(\)"):
        sample(jax.random.key(0), denoise, VP(), Euler(), karras(VP(), 4), (2,))
    with pytest.raises(ValueError, match=r"one key a sample, got \(3,\) for x of shape \(2, 2\)"):
        integrate(keys_of(3), jnp.ones((2, 2)), denoise, VP(), Euler(), karras(VP(), 4))
    wrong = lambda x, t: Prediction(x[:, :1], x)
    with pytest.raises(ValueError, match=r"predict x0 in the shape of its input, \(2, 2\), got \(2, 1\)"):
        sample(keys_of(2), wrong, VP(), Euler(), karras(VP(), 4), (2,))
    with pytest.raises(ValueError, match=r"0 <= eta <= 1, got 1\.5"):
        DDIM(eta=1.5)
    with pytest.raises(ValueError, match="beta_tilde, beta, learned, analytic, got 'gamma'"):
        DDPM(variance="gamma")
