"""Schedulers that count in timesteps of a chain: DDPM, DDIM, PNDM, LCM, TCD and their kin.

A step of theirs from timestep i goes to i - T // n, whichever timestep is evaluated next: where T is not a multiple of
n, the two differ, and both the network and the conversion of its output are told the latter.
"""

import itertools
import math

import numpy as np

from jdiff.interop.schedulers import levels
from jdiff.interop.schedulers.levels import Fields
from jdiff.interop.schedulers.table import Level, Step, Table, tabulate
from jdiff.samplers import Clip, DynamicThreshold, Limit


def limit_of(fields: Fields) -> Limit | None:
    if fields.get("thresholding"):
        return DynamicThreshold(ratio=fields["dynamic_thresholding_ratio"], greatest=fields["sample_max_value"])
    return Clip(limit=fields["clip_sample_range"]) if fields.get("clip_sample") else None


class Chained:
    """The levels of a chain's timesteps; below zero is the end."""

    def __init__(self, fields: Fields, kept: np.ndarray):
        self.kept, self.total = kept, len(kept)
        self.end = 1.0 if fields.get("set_alpha_to_one", True) else float(kept[0])

    def level(self, timestep: float) -> Level:
        step = int(timestep)
        if step >= self.total:
            raise ValueError(f"timestep {step} lies beyond the chain of {self.total}; take other steps or steps_offset")
        kept = float(self.kept[step]) if step >= 0 else self.end
        return Level(math.sqrt(kept), math.sqrt(1 - kept), step)


def timesteps_of(fields: Fields, n: int) -> np.ndarray:
    spacing, total = fields["timestep_spacing"], fields["num_train_timesteps"]
    return np.round(levels.spaced(spacing, total, n, fields["steps_offset"])).astype(int)


def ddim(fields: Fields, n: int, tokens: int | None) -> Table:
    return _ddim(fields, Chained(fields, levels.alphas_cumprod(fields)), timesteps_of(fields, n))


def _ddim(fields: Fields, chain: Chained, timesteps: np.ndarray) -> Table:
    stride = chain.total // len(timesteps)
    pairs = [(chain.level(t), chain.level(t - stride)) for t in timesteps]
    steps = [Step(at=at, to=to, eps=to.sigma, values=[to.alpha]) for at, to in pairs]
    return tabulate(steps, limit=limit_of(fields))


def cogvideox_kept(fields: Fields) -> np.ndarray:
    shift, kept = fields["snr_shift_scale"], levels.alphas_cumprod({**fields, "rescale_betas_zero_snr": False})
    kept = kept / (shift + (1 - shift) * kept)
    return levels.to_zero_snr(kept) if fields["rescale_betas_zero_snr"] else kept


def cogvideox_ddim(fields: Fields, n: int, tokens: int | None) -> Table:
    return _ddim({}, Chained(fields, cogvideox_kept(fields)), timesteps_of(fields, n))


def ddpm(fields: Fields, n: int, tokens: int | None) -> Table:
    """Without noise at timestep 0; steps go to the next timestep, the last to the data."""
    chain, timesteps = Chained({}, levels.alphas_cumprod(fields)), timesteps_of(fields, n)
    kind, steps = fields["variance_type"], []
    for t, s in zip(timesteps, [*timesteps[1:], -1], strict=True):
        at, to = chain.level(t), chain.level(s)
        ratio = at.alpha**2 / to.alpha**2
        small, large = max(to.sigma**2 / at.sigma**2 * (1 - ratio), 1e-20), 1 - ratio
        learned = kind == "learned_range"
        deviation = 1.0 if learned else math.sqrt(large if kind == "fixed_large" else small)
        steps.append(
            Step(
                at=at,
                to=to,
                x=math.sqrt(ratio) * to.sigma**2 / at.sigma**2,
                noise=deviation * (t > 0),
                values=[to.alpha * (1 - ratio) / at.sigma**2],
                log_variance=(math.log(small), math.log(large)) if learned else (0.0, 0.0),
            )
        )
    return tabulate(steps, limit=limit_of(fields), learned=kind == "learned_range")


def wuerstchen_kept(fields: Fields, t: np.ndarray) -> np.ndarray:
    """alpha^2 at times in [0, 1]."""
    scaler, s = fields["scaler"], fields["s"]
    t = 1 - (1 - t) ** scaler if scaler > 1 else t**scaler
    angle = lambda at: np.cos((at + s) / (1 + s) * np.pi / 2) ** 2
    return np.clip(angle(t) / angle(0.0), 1e-4, 0.9999)


def wuerstchen(fields: Fields, n: int, tokens: int | None) -> Table:
    """DDPM over the cosine in continuous time; the label is the time."""
    times = np.linspace(1, 0, n + 1)
    kept, steps = wuerstchen_kept(fields, times), []
    points = [Level(math.sqrt(k), math.sqrt(1 - k), t) for k, t in zip(kept, times, strict=True)]
    for at, to in itertools.pairwise(points):
        ratio = at.alpha**2 / to.alpha**2
        deviation = math.sqrt((1 - ratio) * to.sigma**2 / at.sigma**2) * (to.label > 0)
        scale = 1 / math.sqrt(ratio)
        steps.append(Step(at=at, to=to, x=scale, eps=-scale * (1 - ratio) / at.sigma, noise=deviation))
    return tabulate(steps)


def _distilled(total: int, original: int, n: int) -> np.ndarray:
    if not 1 <= n <= original <= total:
        raise ValueError(f"steps must lie between 1 and original_inference_steps, {original}, got {n}")
    there = (np.arange(1, original + 1) * (total // original) - 1)[::-1]
    return there[np.floor(np.linspace(0, original, n, endpoint=False)).astype(int)]


def lcm(fields: Fields, n: int, tokens: int | None) -> Table:
    """Consistency sampling with noise to the next timestep (arXiv:2310.04378); the data's deviation is taken as 0.5."""
    chain = Chained(fields, levels.alphas_cumprod(fields))
    timesteps = _distilled(chain.total, fields["original_inference_steps"], n)
    steps = []
    for i, t in enumerate(timesteps):
        at, last = chain.level(t), i == n - 1
        to = chain.level(-1) if last else chain.level(timesteps[i + 1])
        scaled = float(t) * fields["timestep_scaling"]
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        alpha, sigma = (1.0, 0.0) if last else (to.alpha, to.sigma)
        steps.append(Step(at=at, to=to, x=alpha * skip, noise=sigma, values=[alpha * out]))
    return tabulate(steps, limit=limit_of(fields))


def tcd(fields: Fields, n: int, tokens: int | None) -> Table:
    """Trajectory consistency with its default gamma of 0.3 (arXiv:2402.19159)."""
    chain, gamma, steps = Chained(fields, levels.alphas_cumprod(fields)), 0.3, []
    timesteps = _distilled(chain.total, fields["original_inference_steps"], n)
    for i, t in enumerate(timesteps):
        last = i == n - 1
        before = 0 if last else int(timesteps[i + 1])
        at, to, middle = chain.level(t), chain.level(before), chain.level(math.floor((1 - gamma) * before))
        scale = 1.0 if last else to.alpha / middle.alpha
        noise = 0.0 if last else math.sqrt(1 - scale**2)
        steps.append(Step(at=at, to=to, eps=scale * middle.sigma, values=[scale * middle.alpha], noise=noise))
    return tabulate(steps)


def pndm(fields: Fields, n: int, tokens: int | None) -> Table:
    """Linear multistep in the raw output (arXiv:2202.09778), after Runge-Kutta rows or a repeated step."""
    chain, timesteps = Chained(fields, levels.alphas_cumprod(fields)), timesteps_of(fields, n)
    stride = chain.total // n
    space = "v" if fields["prediction_type"] == "v_prediction" else "eps"

    def step(told: int, of: int, to: int, aside: bool, keep: bool, weights: list[float]) -> Step:
        """From the level of timestep `of` to that of `to` along a combination of raw outputs."""
        start, end = chain.level(of), chain.level(to)
        spread = start.alpha**2 * end.sigma + start.alpha * start.sigma * end.alpha
        factor = (end.alpha**2 - start.alpha**2) / spread
        x, along = end.alpha / start.alpha, 1.0
        if space == "v":
            x, along = x - factor * start.sigma, start.alpha
        values = [-factor * along * weight for weight in weights]
        at, other = chain.level(told), x if aside else 0.0
        return Step(at=at, to=end, x=x - other, aside=other, values=values, keep=keep)

    order4 = [55 / 24, -59 / 24, 37 / 24, -9 / 24]
    if fields["skip_prk_steps"]:
        again = [timesteps[0], *timesteps[1:2], *timesteps[1:]]
        steps = [step(again[0], again[0], again[0] - stride, False, True, [1.0])]
        if n > 1:
            steps.append(step(again[1], again[1] + stride, again[1], True, False, [0.5, 0.5]))
        # The second evaluation is not remembered.
        weights = [[1.5, 0, -0.5], [23 / 12, -16 / 12, 0, 5 / 12], [*order4[:3], 0, order4[3]]]
        for i, t in enumerate(again[2:]):
            steps.append(step(t, t, t - stride, False, False, weights[i] if i < 3 else order4))
        return tabulate(steps, space=space)
    if n < 4:
        raise ValueError(f"steps must be at least 4 without skip_prk_steps, got {n}")
    half, steps = stride // 2, []
    doubled = np.repeat(timesteps[::-1][-4:], 2) + np.tile([0, half], 4)
    inner = np.repeat(doubled[:-1], 2)[1:-1][::-1]
    for i, t in enumerate(inner):
        weights = [[1.0], [1.0], [1.0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]][i % 4]
        steps.append(step(t, inner[i // 4 * 4], t - (0 if i % 2 else half), i % 4 > 0, i % 4 == 0, weights))
    gaps = [[0, 4, 8, 12], [0, 1, 5, 9], [0, 1, 2, 6]]  # how long ago the remembered ones are
    for i, t in enumerate(timesteps[3:]):
        weights = order4
        if i < 3:
            weights = [0.0] * 13
            for weight, gap in zip(order4, gaps[i], strict=True):
                weights[gap] = weight
        steps.append(step(t, t, t - stride, False, False, weights))
    return tabulate(steps, space=space)
