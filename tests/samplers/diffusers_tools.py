"""What the tests against diffusers share: one network, in jax and in torch, taken by ours and by theirs.

torch and diffusers are in the extra `oracles`. Without them those tests are skipped; with JDIFF_ORACLES=required in the
environment, as the gate sets it, that is a failure.
"""

import importlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.prediction import Prediction
from jdiff.processes import Chain
from jdiff.samplers import integrate
from tests.samplers.tools import handed_in, keys_of

if os.environ.get("JDIFF_ORACLES") == "required":
    torch, diffusers = (importlib.import_module(name) for name in ("torch", "diffusers"))
else:
    reason = 'torch and diffusers are not installed: pip install -e ".[oracles]"'
    torch, diffusers = (pytest.importorskip(name, reason=reason) for name in ("torch", "diffusers"))

diffusers.utils.logging.set_verbosity_error()
N, T, CLOSE = 16, 1000, 1e-5
X = np.random.default_rng(0).normal(size=(8, 1, 2, 2)).astype(np.float32)
SD = {"num_train_timesteps": T, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SIGMA_MIN = {"final_sigmas_type": "sigma_min", "lower_order_final": False}


def network(xp, x, alpha, sigma):
    """E[x0 | x] of coordinates that are 1 or -1, each with standard deviation 0.3: the network, in any library."""
    total = (0.3 * alpha) ** 2 + sigma**2
    centre = xp.tanh(alpha * x / total)
    return centre + 0.09 * alpha / total * (x - alpha * centre)


def noises(n, seed=0):
    """What a generator with this seed draws, n times: [n, 1, ...]."""
    generator = torch.Generator().manual_seed(seed)
    return np.stack([torch.randn(X.shape, generator=generator).numpy() for _ in range(n)])[:, None]


def ours(solver, process, grid, x=X, noise=None):
    """The state at the end of the grid."""

    def denoise(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x0 = network(jnp, x, alpha, sigma)
        return Prediction(x0, (x - alpha * x0) / sigma)

    table = np.zeros((len(grid) - 1, 1, *X.shape), np.float32) if noise is None else noise
    source = handed_in(jnp.asarray(table), jnp.asarray(table))
    run = lambda x, grid: integrate(keys_of(len(X)), x, denoise, process, solver, grid, noise=source)
    compiled = jax.jit(run)
    return np.asarray(compiled(jnp.asarray(x, jnp.float32), jnp.asarray(grid, jnp.float32)))


def theirs(scheduler, x=X, steps=None, sample=False, variance_noise=None, **options):
    """The state after so many calls of a scheduler whose state is alpha x0 + sigma eps, alpha^2 + sigma^2 = 1."""
    x, levels = torch.tensor(x), getattr(scheduler, "sigmas", None)
    for i, t in enumerate(scheduler.timesteps[:steps]):
        kept = scheduler.alphas_cumprod[t] if levels is None else 1 / (1 + levels[i] ** 2)
        alpha, sigma = kept**0.5, (1 - kept) ** 0.5 if levels is None else levels[i] * kept**0.5
        x0 = network(torch, x, alpha, sigma)
        drawn = {} if variance_noise is None else {"variance_noise": torch.tensor(variance_noise[i, 0])}
        x = scheduler.step(x0 if sample else (x - alpha * x0) / sigma, t, x, **options, **drawn).prev_sample
    return x.numpy()


def theirs_unscaled(scheduler, x, steps=None, **options):
    """The same of a scheduler whose state is x0 + sigma eps."""
    x = torch.tensor(x)
    for i, t in enumerate(scheduler.timesteps[:steps]):
        sigma = scheduler.sigmas[i]
        if i % 2 and hasattr(scheduler, "sigmas_interpol"):
            sigma = scheduler.sigmas_interpol[i - 1 if hasattr(scheduler, "sigmas_up") else i]
        scheduler.scale_model_input(x, t)  # they insist
        x = scheduler.step((x - network(torch, x, 1.0, sigma)) / sigma, t, x, **options).prev_sample
    return x.numpy()


def chain_of(scheduler):
    return Chain.from_alphas_cumprod(scheduler.alphas_cumprod.double().numpy())


def made(name, n=N, **config):
    """A scheduler of Stable Diffusion's chain over n steps."""
    scheduler = getattr(diffusers, f"{name}Scheduler")(**SD, **config)
    scheduler.set_timesteps(n)
    return scheduler


def at(timesteps):
    """Our times of timesteps; -1 is the data."""
    return (np.asarray(timesteps, np.float64) + 1) / T


def apart(a, b):
    """The greatest difference, over the greatest value where that is above 1."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(1, np.abs(b).max()))


def state(x0, eps, level):
    """alpha x0 + sigma eps at a level sigma / alpha."""
    return (x0 + level * eps) / np.sqrt(1 + level**2)


def data(x, level):
    """x0 that the network predicts of a state at a level."""
    scale = np.sqrt(1 + level**2)
    return network(np, x, 1 / scale, level / scale)


def single_step(order, space, steps):
    """diffusers' state over 12 evaluations of equal steps in log sigma, as x0 + sigma eps; and the levels."""
    algorithm = {"x0": "dpmsolver++", "eps": "dpmsolver"}[space]
    config = {"solver_order": order, "algorithm_type": algorithm, "prediction_type": "sample"}
    peer = made("DPMSolverSinglestep", 12, **config, **SIGMA_MIN)
    levels = np.geomspace(14.0, 0.03, 13)
    peer.sigmas = torch.tensor(levels, dtype=torch.float32)
    scale = np.sqrt(1 + levels**2).astype(np.float32)
    return theirs(peer, sample=True, steps=steps) * scale[steps], levels, X * scale[0]
