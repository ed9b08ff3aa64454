"""One network, state and noise, taken to the end by a scheduler of diffusers and by the table made of its config.

The network is told the label, so that a wrong timestep is as visible as a wrong level. Tables are filled up with rows
that change nothing, to sizes that all of them share: a dozen programs serve every case.
"""

import functools
import importlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.interop.schedulers import schedule_of
from jdiff.prediction import predictor
from jdiff.processes import Nodes
from jdiff.samplers import Rows, Tabulated, integrate
from tests.samplers.diffusers_tools import diffusers, handed_in, keys_of, torch

ROWS, MEMORY = 56, 13
X = np.random.default_rng(0).normal(size=(4, 1, 2, 2)).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=(ROWS, *X.shape)).astype(np.float32)


def raw_output(xp, x, label):
    return 0.7 * xp.tanh(1.2 * x + 0.3 * xp.cos(0.03 * label)) + 0.3 * xp.sin(2 * x + 0.02 * label)


def peer_class(name):
    """The class; one of them asks for a package that only its noise needs, which is handed in here."""
    if name != "CosineDPMSolverMultistepScheduler":
        return getattr(diffusers, name)
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    return importlib.import_module("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep").__dict__[name]


def mu(config, tokens):
    """What pipelines give a schedule that depends on the picture's size."""
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (tokens - few) * (high - low) / (many - few)


def theirs(peer, n, tokens, monkeypatch, scale=1.0):
    """The timesteps, and the state after the last; that at the start times `scale`."""
    dynamic = getattr(peer.config, "use_dynamic_shifting", False)
    peer.set_timesteps(n, **({"mu": mu(peer.config, tokens)} if dynamic else {}))
    module, step = importlib.import_module(type(peer).__module__), [0]
    drawn = lambda *args, **kwargs: torch.tensor(NOISE[step[0]])
    monkeypatch.setattr(module, "randn_tensor", drawn, raising=False)
    monkeypatch.setattr(module, "BrownianTreeNoiseSampler", lambda *args, **kwargs: drawn, raising=False)
    by_sample = type(peer).__name__ == "DDPMWuerstchenScheduler"  # its last time is the end
    timesteps = peer.timesteps[:-1] if by_sample else peer.timesteps
    x = torch.tensor(X) * scale * getattr(peer, "init_noise_sigma", 1.0)
    for step[0], t in enumerate(timesteps):
        scaled = peer.scale_model_input(x, t) if hasattr(peer, "scale_model_input") else x
        raw = raw_output(torch, scaled.float(), t.float())
        x = peer.step(raw, t[None].expand(len(x)) if by_sample else t, x).prev_sample
    return timesteps.double().numpy(), x.numpy()


@functools.partial(jax.jit, static_argnums=4)
def _run(x, process, solver, grid, parameterization):
    apply = lambda x, label, cond: raw_output(jnp, x, label.reshape(-1, 1, 1, 1))
    predict = predictor(apply, process, parameterization)
    source = handed_in(jnp.asarray(NOISE[:, None]), jnp.asarray(NOISE[:, None]))
    return integrate(keys_of(len(X)), x, lambda x, t: predict(x, t, None), process, solver, grid, noise=source)


def filled(table):
    """The table with rows that change nothing, up to the shared sizes."""
    rows, count = table.solver.rows, len(table.solver.rows.t)
    more, memory = ROWS - count, rows.step.shape[1] - 4
    wide = lambda part: np.pad(np.asarray(part), ((0, 0), (0, MEMORY - memory)))
    still = np.zeros((more, 4 + MEMORY), np.float32)
    still[:, 0] = 1
    last = lambda part: np.append(part, np.repeat(part[-1:], more))
    filled_rows = Rows(
        t=last(np.asarray(rows.t)),
        s=last(np.asarray(rows.t)),
        correct=np.concatenate([wide(rows.correct), still[:, :-1]]),
        keep=np.append(rows.keep, np.zeros(more, np.float32)),
        step=np.concatenate([wide(rows.step), still]),
        log_variance=np.concatenate([rows.log_variance, np.zeros((more, 2), np.float32)]),
    )
    solver = Tabulated(rows=filled_rows, limit=table.solver.limit, space=table.solver.space, draws=True)
    old, extra = table.process, ROWS + 1 - len(table.process.times)
    beyond = old.times[-1] + 0.1 * np.arange(1, extra + 1, dtype=np.float32)
    more = lambda values: np.append(values, np.ones(extra, np.float32))
    process = Nodes(
        times=np.append(old.times, beyond),
        alphas=more(old.alphas),
        sigmas=more(old.sigmas),
        labels=more(old.labels),
    )
    return process, solver, jnp.asarray(table.grid)[jnp.array([0, -1])]


def ours(config, n, tokens=None, **options):
    """The labels, and the state after the last evaluation. Raises ValueError where the config is refused."""
    schedule = schedule_of(config, "config", **options)
    table = schedule.table(n, tokens)
    process, solver, grid = filled(table)
    x = _run(jnp.asarray(X * np.float32(table.start)), process, solver, grid, schedule.parameterization)
    return np.asarray(table.process.noise_label(table.solver.rows.t), np.float64), np.asarray(x)


def apart(a, b):
    """The greatest difference over the greatest value."""
    return float(np.abs(a - b).max() / np.abs(b).max())
