"""What one step of a first-order method does: the orders cannot tell these apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.processes import VP
from jdiff.samplers import (
    DDIM,
    DDPM,
    Euler,
    integrate,
    karras,
    sample,
)
from tests.samplers.tools import (
    SMOOTH,
    SMOOTH_TARGETS,
    handed_in,
    keys_of,
)
from tests.table import anisotropic


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", SMOOTH)
def test_an_euler_step_follows_the_tangent(process_name):
    """Song et al. 2021, eq. 13, at the step's start; a slope taken at its end would be of order 1, too."""
    (process, t), target = SMOOTH[process_name], SMOOTH_TARGETS["mixture"]()
    x = jnp.array([[0.3, -1.1], [0.8, 0.2]])
    score = jax.grad(lambda x: target.log_density(process, x, t).sum())(x)
    tangent = process.drift(x, t) - process.diffusion(t) ** 2 / 2 * score
    for s in (0.9 * t, 0.3 * t):
        end = integrate(keys_of(2), x, target.denoiser(process), process, Euler(), jnp.array([t, s]))
        np.testing.assert_allclose((end - x) / (s - t), tangent, rtol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process_name", SMOOTH)
@pytest.mark.parametrize("solver", [DDPM(), DDPM(variance="beta"), DDIM(eta=1.0), DDIM(eta=0.5)], ids=str)
def test_noise_of_one_step_has_the_variance_of_its_name(solver, process_name):
    """Order and moments cannot tell the forward step's variance from the posterior's: both are right in the limit."""
    process, start = SMOOTH[process_name]
    t, s = start, 0.4 * start
    ratio = process.alpha(t) / process.alpha(s)
    forward = process.sigma(t) ** 2 - (ratio * process.sigma(s)) ** 2  # of x_t given x_s
    posterior = 1 / (1 / process.sigma(s) ** 2 + ratio**2 / forward)  # of x_s given x_t and x0: precisions add
    expected = forward if solver == DDPM(variance="beta") else posterior * getattr(solver, "eta", 1.0) ** 2
    denoise, drawn = anisotropic().denoiser(process), jnp.array([0.7, -1.3]).reshape(1, 1, 1, 2)
    run = lambda z: integrate(
        keys_of(1), jnp.zeros((1, 2)), denoise, process, solver, jnp.array([t, s]), noise=handed_in(z, z)
    )
    np.testing.assert_allclose(((run(drawn) - run(0 * drawn)) / drawn[0, 0]) ** 2, [[expected] * 2], rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_ddim_with_eta_one_is_ancestral_sampling():
    target, process, grid = anisotropic(), VP(), karras(VP(), 12, dtype=jnp.float64)
    one, other = (sample(keys_of(4), target.denoiser(process), process, s, grid, (2,)) for s in (DDIM(eta=1.0), DDPM()))
    np.testing.assert_allclose(one, other, rtol=1e-9)
