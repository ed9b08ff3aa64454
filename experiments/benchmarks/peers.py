"""Samplers of diffusers and k-diffusion as functions (denoise, x, sigmas) -> x at the last sigma, in torch.

Both are driven by their own code. A diffusers scheduler is made by its own constructor and `set_timesteps`; then its
sigmas (or its alphas) are overwritten by the grid, and its `step` does the rest, in the state that it wants: x itself,
or x / sqrt(1 + sigma^2). The grid is handed over in float64; what a scheduler rounds to float32 inside stays rounded.
`shipped=True` hands over float32, which is what `set_timesteps` makes.

k-diffusion is imported without its package's __init__, which asks for training code and torchvision; an empty module
of that name stands in.
"""
# pyright: reportMissingImports=false
# They are of an environment of their own.

import functools
import importlib
import importlib.util
import itertools
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch

diffusers.logging.set_verbosity(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning)

Denoise = Callable[[Any, float], Any]  # (x [B, D], sigma) -> E[x0 | x]


def mixture_denoiser(log_weights: Any, means: Any, vectors: Any, values: Any) -> Denoise:
    """E[x0 | x] under x = x0 + sigma eps for a mixture of Gaussians in the plane, in float64: `oracles.Mixture` again.

    Log densities are polynomials of x, and E[x0 | x, component] is affine in it: two matrix products.
    """
    log_weights, means, vectors, values = (np.asarray(part) for part in (log_weights, means, vectors, values))

    @functools.cache
    def at(sigma: float) -> tuple[Any, Any]:
        total = values + sigma**2
        inverse = np.einsum("kde,ke,kfe->kdf", vectors, 1 / total, vectors)
        shrink = np.einsum("kde,ke,kfe->kdf", vectors, values / total, vectors)
        pull = np.einsum("kdf,kf->kd", inverse, means)
        constant = log_weights - 0.5 * (np.log(total).sum(1) + (pull * means).sum(1))
        square = [-0.5 * inverse[:, 0, 0], -inverse[:, 0, 1], -0.5 * inverse[:, 1, 1]]
        offset = means - np.einsum("kdf,kf->kd", shrink, means)
        return (
            torch.tensor(np.stack([*square, pull[:, 0], pull[:, 1], constant])),
            torch.tensor(np.concatenate([offset, shrink.reshape(-1, 4)], axis=1)),
        )

    def denoise(x: Any, sigma: float) -> Any:
        quadratic, affine = at(float(sigma))
        a, b = x.double().unbind(1)
        member = torch.softmax(torch.stack([a * a, a * b, b * b, a, b, torch.ones_like(a)], dim=1) @ quadratic, dim=1)
        c, d, aa, ab, ba, bb = (member @ affine).unbind(1)
        return torch.stack([c + aa * a + ab * b, d + ba * a + bb * b], dim=1)

    return denoise


def circle_denoiser(radius: Any, std: Any) -> Denoise:
    """The same for `oracles.UniformRing`."""

    def denoise(x: Any, sigma: float) -> Any:
        x = x.double()
        r, total = x.norm(dim=1, keepdim=True), std**2 + sigma**2
        k = r * radius / total
        centre = radius * torch.special.i1e(k) / torch.special.i0e(k) * x / r
        return centre + std**2 / total * (x - centre)

    return denoise


class Peer(NamedTuple):
    """A sampler with its settings."""

    package: str
    name: str
    steps: Callable[[int], int | None]  # steps that make this many evaluations, if some number does
    run: Callable[..., Any]  # (denoise, x, sigmas [steps + 1]) -> x; `sigmas` is the number of evaluations if no grid
    grid: bool = True  # whether it takes one


def every(nfe: int) -> int | None:
    return nfe


def half(nfe: int) -> int | None:
    return nfe // 2 if nfe % 2 == 0 else None


def half_up(nfe: int) -> int | None:
    """Two evaluations a step; of an odd number, the last step makes one, as at sigma = 0."""
    return (nfe + 1) // 2


def _scheduler(name: str, n: int, sigmas: Any, shipped: bool, **config: Any) -> tuple[Any, Any]:
    """A scheduler over n steps, and the grid in the precision that it gets."""
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(n)
    scheduler.timesteps = torch.arange(n, 0, -1, dtype=torch.float64)
    return scheduler, torch.tensor(sigmas, dtype=torch.float32 if shipped else torch.float64)


def _shrunk(name: str, **config: Any) -> Callable[..., Any]:
    """A scheduler of x / sqrt(1 + sigma^2) that takes the data predicted."""

    def run(denoise: Denoise, x: Any, sigmas: Any, shipped: bool = False) -> Any:
        scheduler, grid = _scheduler(name, len(sigmas) - 1, sigmas, shipped, prediction_type="sample", **config)
        scheduler.sigmas = grid
        scale = [(1 + sigma**2) ** 0.5 for sigma in sigmas]
        x = x / scale[0]
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(denoise(x * scale[i], sigmas[i]), t, x).prev_sample
        return x * scale[-1]

    return run


def _plain(name: str, config: dict[str, Any], **step: Any) -> Callable[..., Any]:
    """A scheduler of x with one evaluation a step."""

    def run(denoise: Denoise, x: Any, sigmas: Any, shipped: bool = False) -> Any:
        scheduler, scheduler.sigmas = _scheduler(name, len(sigmas) - 1, sigmas, shipped, **config)
        for i, t in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(x, t)  # they insist
            x0 = denoise(x, sigmas[i])
            if name == "EDMEulerScheduler":
                x = scheduler.step(x0, t, x, pred_original_sample=x0).prev_sample
                continue
            if name == "EDMDPMSolverMultistepScheduler":  # it takes the raw output of a preconditioned network
                skip, out = (scheduler.precondition_outputs(*at, sigmas[i]) for at in [(1.0, 0.0), (0.0, 1.0)])
                x0 = (x0 - skip * x) / out
            x = scheduler.step(x0, t, x, **step).prev_sample
        return x

    return run


def _twice(name: str) -> Callable[..., Any]:
    """HeunDiscrete and KDPM2Discrete: two calls a step."""

    def run(denoise: Denoise, x: Any, sigmas: Any, shipped: bool = False, nfe: int = 0) -> Any:
        scheduler, grid = _scheduler(name, len(sigmas) - 1, sigmas, shipped)
        middle = (grid[1:] * grid[:-1]).sqrt() if name.startswith("KDPM2") else grid[1:].clone()
        if nfe % 2:
            middle[-1] = grid[-1]
        second = torch.stack([middle, middle], dim=1).flatten()
        scheduler.sigmas = torch.cat([grid[:1], grid[1:].repeat_interleave(2)])
        scheduler.sigmas_interpol = torch.cat([grid[:1], second])
        scheduler.timesteps = torch.arange(nfe, 0, -1, dtype=torch.float64)
        for i, t in enumerate(scheduler.timesteps):
            sigma = float(middle[i // 2] if i % 2 else grid[i // 2])
            x = scheduler.step((x - denoise(x, sigma)) / sigma, t, x).prev_sample
        return x

    return run


def _ipndm(denoise: Denoise, x: Any, sigmas: Any, shipped: bool = False) -> Any:
    scheduler, grid = _scheduler("IPNDMScheduler", len(sigmas) - 1, sigmas, shipped)
    scale = (1 + grid**2).sqrt()
    scheduler.alphas, scheduler.betas = 1 / scale, grid / scale
    x = x / scale[0]
    for i, t in enumerate(scheduler.timesteps):
        x0 = denoise(x * scale[i], sigmas[i])
        eps = (x * scale[i] - x0) / sigmas[i]
        x = scheduler.step(eps / scale[i] - x0 * grid[i] / scale[i], t, x).prev_sample
    return x * scale[-1]


def _chain(name: str, per_step: int, **config: Any) -> Callable[..., Any]:
    """DDIM and PNDM, whose grid is a chain: one of `per_step` times as many steps, geometric in between."""

    def run(denoise: Denoise, x: Any, sigmas: Any, shipped: bool = False) -> Any:
        n = len(sigmas) - 1
        scheduler = getattr(diffusers, name)(num_train_timesteps=per_step * n, **config)
        scheduler.set_timesteps(n)
        fine = np.exp(np.interp(np.arange(per_step * n + 1) / per_step, np.arange(n + 1), np.log(sigmas[::-1])))
        fine = torch.tensor(fine, dtype=torch.float32 if shipped else torch.float64)
        kept = 1 / (1 + fine**2)  # "alphas_cumprod"; chain step k has noise fine[k + per_step]
        scheduler.final_alpha_cumprod, scheduler.alphas_cumprod = kept[0], kept[per_step:]
        # The chain's steps after the first of the grid do not exist.
        scheduler.alphas_cumprod = torch.cat([scheduler.alphas_cumprod, kept[-1:].expand(per_step - 1)])
        x = x * kept[-1].sqrt()
        for t in scheduler.timesteps:
            sigma, root = float(fine[int(t) + per_step]), scheduler.alphas_cumprod[int(t)].sqrt()
            x = scheduler.step((x / root - denoise(x / root, sigma)) / sigma, int(t), x).prev_sample
        return x / kept[0].sqrt()

    return run


def sampling() -> Any:
    """k_diffusion.sampling."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            raise ImportError("k-diffusion is not installed in this environment")
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["k_diffusion"] = package
        vision = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.transforms")}
        vision["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
        sys.modules.update(vision)
    return importlib.import_module("k_diffusion.sampling")


def _k(name: str, **options: Any) -> Callable[..., Any]:
    def run(denoise: Denoise, x: Any, sigmas: Any, shipped: bool = False) -> Any:
        model = lambda x, sigma: denoise(x, float(sigma[0]))
        grid = torch.tensor(sigmas, dtype=torch.float32 if shipped else x.dtype)
        return getattr(sampling(), f"sample_{name}")(model, x, grid, disable=True, **options)

    return run


def _k_fast(denoise: Denoise, x: Any, nfe: int) -> Any:
    model = lambda x, sigma: denoise(x, float(sigma[0]))
    return sampling().sample_dpm_fast(model, x, 0.002, 80.0, nfe, disable=True)


def k_adaptive(denoise: Denoise, x: Any, order: int, tolerance: float) -> Any:
    """sample_dpm_adaptive, which makes as many evaluations as it likes."""
    model = lambda x, sigma: denoise(x, float(sigma[0]))
    options = {"order": order, "rtol": tolerance, "atol": tolerance * 0.0078 / 0.05, "disable": True}
    return sampling().sample_dpm_adaptive(model, x, 0.002, 80.0, **options)


def _ending(lower: bool) -> str:
    return "" if lower else ", full order at the end"


def _dpm(name: str) -> Iterator[Peer]:
    """DPM-Solver in both predictions, with the settings that differ."""
    for algorithm, order, kind, lower in itertools.product(
        ("dpmsolver++", "dpmsolver"), (1, 2, 3), ("midpoint", "heun"), (True, False)
    ):
        one_kind = order == 1 or (order == 3 and "Multi" in name)
        if (one_kind and kind == "heun") or (order == 1 and not lower):
            continue  # the same as the other
        config = {"solver_order": order, "solver_type": kind, "lower_order_final": lower}
        config |= {"algorithm_type": algorithm, "final_sigmas_type": "sigma_min"}
        label = f"{name} {algorithm} order {order} {kind}{_ending(lower)}"
        yield Peer("diffusers", label, every, _shrunk(f"{name}Scheduler", **config))


def peers() -> list[Peer]:
    """Every deterministic sampler, with the settings that change its result."""
    found = [*_dpm("DPMSolverMultistep"), *_dpm("DPMSolverSinglestep")]
    for kind, p, lower, x0 in itertools.product(("bh1", "bh2"), (1, 2, 3, 4), (True, False), (True, False)):
        config = {"solver_type": kind, "solver_order": p, "lower_order_final": lower, "predict_x0": x0}
        label = f"UniPCMultistep {kind} order {p}{'' if x0 else ', noise'}{_ending(lower)}"
        run = _shrunk("UniPCMultistepScheduler", final_sigmas_type="sigma_min", **config)
        found.append(Peer("diffusers", label, every, run))
    for order, lower in [(1, True), (2, True), (2, False), (3, True), (3, False)]:
        run = _shrunk("DEISMultistepScheduler", solver_order=order, lower_order_final=lower)
        found.append(Peer("diffusers", f"DEISMultistep order {order}{_ending(lower)}", every, run))
    for order, lower in [(2, True), (2, False), (3, True), (3, False)]:
        config = {"solver_order": order, "lower_order_final": lower, "final_sigmas_type": "sigma_min"}
        run = _plain("EDMDPMSolverMultistepScheduler", config)
        found.append(Peer("diffusers", f"EDMDPMSolverMultistep order {order}{_ending(lower)}", every, run))
    found.append(Peer("diffusers", "EDMEuler", every, _plain("EDMEulerScheduler", {})))
    sample = {"prediction_type": "sample"}
    found.append(Peer("diffusers", "EulerDiscrete", every, _plain("EulerDiscreteScheduler", sample)))
    for order in (2, 3, 4):
        run = _plain("LMSDiscreteScheduler", sample, order=order)
        found.append(Peer("diffusers", f"LMSDiscrete order {order}", every, run))
    for name in ("HeunDiscrete", "KDPM2Discrete"):
        found.append(Peer("diffusers", name, half_up, _twice(f"{name}Scheduler")))
    found.append(Peer("diffusers", "IPNDM", every, _ipndm))
    chain = {"set_alpha_to_one": False}
    ddim = _chain("DDIMScheduler", 1, clip_sample=False, **chain)
    found.append(Peer("diffusers", "DDIM", every, ddim))
    plms = _chain("PNDMScheduler", 1, skip_prk_steps=True, **chain)
    found.append(Peer("diffusers", "PNDM, skip_prk_steps", lambda nfe: nfe - 1, plms))
    prk = _chain("PNDMScheduler", 2, **chain)
    found.append(Peer("diffusers", "PNDM", lambda nfe: nfe - 9 if nfe >= 13 else None, prk))
    for name in ("euler", "dpmpp_2m"):
        found.append(Peer("k-diffusion", name, every, _k(name)))
    for order in (2, 3, 4):
        found.append(Peer("k-diffusion", f"lms order {order}", every, _k("lms", order=order)))
    still = {"eta": 0.0, "noise_sampler": lambda sigma, after: 0.0}
    for kind in ("midpoint", "heun"):
        run = _k("dpmpp_2m_sde", solver_type=kind, **still)
        found.append(Peer("k-diffusion", f"dpmpp_2m_sde, eta 0, {kind}", every, run))
    found.append(Peer("k-diffusion", "dpmpp_3m_sde, eta 0", every, _k("dpmpp_3m_sde", **still)))
    for name in ("heun", "dpm_2"):
        found.append(Peer("k-diffusion", name, half, _k(name)))
    for name in ("dpmpp_2s_ancestral", "dpmpp_sde"):
        found.append(Peer("k-diffusion", f"{name}, eta 0", half, _k(name, **still)))
    found.append(Peer("k-diffusion", "dpm_fast", every, _k_fast, grid=False))
    return found
