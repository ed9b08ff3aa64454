"""Every scheduler class with every value of its options, against diffusers: the labels, and the end to 1e-4.

An option is tried alone and with others, drawn with a fixed seed. What diffusers itself cannot draw (an error of its
own, or NaN) decides nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.interop.schedulers import TABLES, schedule_of
from jdiff.interop.schedulers.classes import DEFAULTS
from jdiff.prediction import LearnedVariance, predictor
from jdiff.samplers import integrate
from tests.interop.trajectories import NOISE, X, apart, ours, peer_class, raw_output, theirs
from tests.samplers.diffusers_tools import handed_in, keys_of, torch

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTIONS, ENDS = ["epsilon", "sample", "v_prediction"], ["zero", "sigma_min"]
RESPACED = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"]
# Values of fields, whichever class reads them.
VALUES = {
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "prediction_type": PREDICTIONS,
    "timestep_spacing": ["linspace", "leading", "trailing"],
    "steps_offset": [0, 1],
    "rescale_betas_zero_snr": [False, True],
    "clip_sample": [True, False],
    "clip_sample_range": [1.0, 0.7],
    "thresholding": [False, True],
    "sample_max_value": [1.0, 1.5],
    "dynamic_thresholding_ratio": [0.995, 0.9],
    "set_alpha_to_one": [True, False],
    "skip_prk_steps": [True, False],
    "final_sigmas_type": ENDS,
    "solver_order": [1, 2, 3],
    "lower_order_final": [True, False],
    "euler_at_final": [True, False],
    "interpolation_type": ["linear", "log_linear"],
    "timestep_type": ["discrete", "continuous"],
    "predict_x0": [True, False],
    "disable_corrector": [[], [0, 2]],
    "predictor_order": [1, 2, 3],
    "corrector_order": [1, 2, 3],
    "sigma_schedule": ["karras", "exponential"],
    "shift": [1.0, 3.0],
    "shift_terminal": [None, 0.02],
    "stochastic_sampling": [False, True],
    "use_dynamic_shifting": [False, True],
    "scaler": [1.0, 2.0, 0.5],
    "snr_shift_scale": [1.0, 3.0],
    "original_inference_steps": [50, 100],
    "trained_betas": [None, list(np.linspace(0.001, 0.02, 1000))],
} | {name: [False, True] for name in RESPACED}
ALGORITHMS = {
    "DPMSolverMultistepScheduler": ["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"],
    "DPMSolverSinglestepScheduler": ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"],
    "EDMDPMSolverMultistepScheduler": ["dpmsolver++", "sde-dpmsolver++"],
    "SASolverScheduler": ["data_prediction", "noise_prediction"],
    "DDPMScheduler": ["fixed_small", "fixed_small_log", "fixed_large"],
}
SOLVER_TYPES = {"UniPCMultistepScheduler": ["bh1", "bh2"], "DEISMultistepScheduler": ["logrho"]}
# What diffusers raises of what it cannot draw.
THEIRS = (ValueError, IndexError, RuntimeError, NotImplementedError, AssertionError, TypeError, UnboundLocalError)
SMOOTH = {"timestep_spacing": "leading", "rescale_betas_zero_snr": False}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
# By class, what we refuse of what diffusers draws, with the reason.
REFUSED = {
    "rescale_betas_zero_snr": "epsilon says nothing of x0 without signal",
    "prediction_type": "of EDM's, the one form that folders have",
    "use_flow_sigmas": "levels above 1, or a prediction that is not that of a flow",
    "algorithm_type": "noise prediction of a velocity",
    "solver_order": "an order that its algorithm has not",
    "use_dynamic_shifting": "a shift that needs the picture's size and a flow",
    "only one of": "two spacings at once",
    "sample_max_value": "a limit below 1",
}


def values_of(name):
    """The fields of a class and the values to try."""
    fields = {field: values for field, values in VALUES.items() if field in DEFAULTS[name]}
    if name in ALGORITHMS:
        fields["variance_type" if name == "DDPMScheduler" else "algorithm_type"] = ALGORITHMS[name]
    if "solver_type" in DEFAULTS[name]:
        fields["solver_type"] = SOLVER_TYPES.get(name, ["midpoint", "heun"])
    if "skip_prk_steps" in fields or name in ("EulerAncestralDiscreteScheduler",) or name.startswith("KDPM2"):
        fields["prediction_type"] = ["epsilon", "v_prediction"]
    if name == "KDPM2AncestralDiscreteScheduler":
        # Between levels of the cosine its ancestral step is the difference of two numbers that float32 makes equal.
        fields["beta_schedule"] = ["linear", "scaled_linear"]
    if name.startswith(("EDM", "Cosine")):
        fields["prediction_type"] = ["epsilon"] if name.startswith("EDM") else ["v_prediction"]
    return fields


def cases_of(name):
    """(config, steps): each value alone, at two numbers of steps, and draws of several."""
    fields, base = values_of(name), {key: value for key, value in SD.items() if key in DEFAULTS[name]}
    slow = name.startswith("KDPM2")  # their constructors visit each timestep, slowly
    if slow:
        base |= {"num_train_timesteps": 200}
        fields.pop("trained_betas")
    for n in (10,) if slow else (10, 20):
        yield base, n
        for field, values in fields.items():
            for value in values:
                if value != DEFAULTS[name][field] or field in base:
                    yield base | {field: value}, n
        if "use_flow_sigmas" in DEFAULTS[name]:
            yield base | FLOW, n
    random = np.random.default_rng(5)
    for _ in range(10 if slow else 30):
        config = dict(base)
        for field, values in fields.items():
            if field not in (*RESPACED, "trained_betas"):
                config[field] = values[random.integers(len(values))]
        respaced = [field for field in RESPACED if field in fields]
        if respaced and random.random() < 0.5:
            config[respaced[random.integers(len(respaced))]] = True
        if config.get("beta_schedule") == "squaredcos_cap_v2":
            # In float32 it is its own rounding that shows: of sigma = 20,000 at the last timestep, and near the data of
            # the square roots that zero SNR takes.
            config |= {key: value for key, value in SMOOTH.items() if key in config}
        yield config, int(random.choice([5, 10, 14, 15, 20]))


def slack(name, config, peer):
    """1e-4; where the state is x0 + sigma eps in float32, also what rounding it at the greatest sigma leaves, and where
    factors of order 3 are computed in float32, what is lost of them between levels that lie close."""
    if name.startswith(("Euler", "Heun", "KDPM2", "LMS")):
        return 1e-4 + float(peer.sigmas.max()) * 2.0**-20
    cubic = config.get("solver_order", 2) == 3 and any(config.get(field) for field in RESPACED)
    return 5e-3 if name == "DEISMultistepScheduler" and cubic else 1e-4


@pytest.mark.parametrize("name", TABLES)
def test_the_end_and_the_labels_are_those_of_diffusers(name, monkeypatch):
    agreed, wrong, refused = 0, [], []
    for config, n in cases_of(name):
        tokens = 1024 if config.get("use_dynamic_shifting") else None
        try:
            peer = peer_class(name)(**config)
            with np.errstate(all="ignore"):
                timesteps, end = theirs(peer, n, tokens, monkeypatch)
        except THEIRS:
            continue
        if not np.isfinite(end).all():
            continue
        try:
            labels, here = ours(config | {"_class_name": name}, n, tokens)
        except ValueError as error:
            refused.append((config, n, str(error)))
            continue
        same = len(labels) == len(timesteps) and np.abs(labels - timesteps).max() < 0.01
        if not same or apart(here, end) > 1e-4:
            _, near = theirs(peer_class(name)(**config), n, tokens, monkeypatch, scale=1 + 2.0**-20)
            if not same or apart(here, end) > slack(name, config, peer) + apart(near, end):
                told = {key: value for key, value in config.items() if value != SD.get(key)}
                wrong.append((told, n, same, apart(here, end)))
        agreed += 1
    unexpected = [case for case in refused if not any(field in case[2] for field in REFUSED)]
    assert not wrong, "\n".join(map(str, wrong))
    assert not unexpected, "\n".join(map(str, unexpected))
    assert agreed > 2 * len(refused)


def test_a_learned_variance(monkeypatch):
    """The network's second half says where the variance lies between its bounds, in each value."""
    config = {"variance_type": "learned_range", "clip_sample": False}
    peer = peer_class("DDPMScheduler")(**config)
    peer.set_timesteps(10)
    step = [0]
    drawn = lambda *_, **__: torch.tensor(NOISE[step[0]])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", drawn)
    x = torch.tensor(X)
    for step[0], t in enumerate(peer.timesteps):
        raw = raw_output(torch, x, t.float())
        x = peer.step(torch.cat([raw, torch.sin(3 * x)], 1), t, x).prev_sample
    schedule = schedule_of({"_class_name": "DDPMScheduler", **config}, "config")
    table = schedule.table(10)

    def network(x, label, cond):
        return jnp.concatenate([raw_output(jnp, x, label.reshape(-1, 1, 1, 1)), jnp.sin(3 * x)], -1)

    predict = predictor(network, table.process, LearnedVariance(mean=schedule.parameterization))
    rows = np.moveaxis(X, 1, -1)
    source = handed_in(*[jnp.asarray(np.moveaxis(NOISE, 2, -1)[:, None])] * 2)
    run = lambda x: integrate(
        keys_of(len(X)), x, lambda x, t: predict(x, t, None), table.process, table.solver, table.grid, noise=source
    )
    assert apart(np.moveaxis(np.asarray(jax.jit(run)(jnp.asarray(rows))), -1, 1), x.numpy()) < 1e-5
