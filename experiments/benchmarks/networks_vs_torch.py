"""Our networks beside PyTorch's of the same weights: a forward pass, a training step, 20 steps of DDIM.

    pip install -e ".[oracles]"
    python experiments/benchmarks/networks_vs_torch.py [--json] [--no-compile] [unet] [dit]

A text-conditional U-Net and a DiT from diffusers, saved and loaded here; float32, two threads on a CPU, batch 4, our
equal blocks written out as theirs are. Ours and PyTorch's, eager and by torch.compile, are processes of their own and
timed in turn, round after round; what is printed is the median over nine rounds of PyTorch's time over ours within a
round, and between what the rounds lie but for the first and the last: above 1 we are faster. The limit on a CPU is a
training step no slower than eager PyTorch's and sampling 1.2 times as fast. Run it on an idle machine; with
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment both get their memory in large pages.
"""
# pyright: reportMissingImports=false
# PyTorch and diffusers are in an extra of their own.

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jdiff import guidance
from jdiff.interop import from_pretrained
from jdiff.interop.schedulers import read_schedule
from jdiff.models import Compute
from jdiff.prediction import predictor
from jdiff.samplers import DDIM, integrate

BATCH, SIZE, CHANNELS, STEPS, ROUNDS, THREADS = 4, 32, 4, 20, 9, 2
TEXT = (16, 128)
UNET = {
    "sample_size": SIZE,
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": TEXT[1],
}
DIT = {"num_layers": 8, "num_attention_heads": 4, "attention_head_dim": 64, "num_embeds_ada_norm": 10}


PEERS: Any = diffusers  # which exports its classes when they are asked for


def made(name: str) -> Any:
    """The PyTorch network, whose DiT holds one embedder in all blocks, as the published one."""
    torch.manual_seed(0)
    if name == "unet":
        return PEERS.UNet2DConditionModel(**UNET)
    model = PEERS.DiTTransformer2DModel(**DIT, sample_size=SIZE)
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return model


def ours(name: str, folder: str) -> dict:
    """What is timed: each a call that waits for its result."""
    _, network, params, _ = from_pretrained(folder, compute=Compute(scan=False))
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(BATCH, SIZE, SIZE, CHANNELS)), jnp.float32)
    t = jnp.full(BATCH, 500.0)
    text = jnp.asarray(random.normal(size=(BATCH, *TEXT)), jnp.float32)
    cond = {"text": text} if name == "unet" else {"label": jnp.arange(BATCH)}
    forward = jax.jit(network.apply)
    optimizer = optax.adam(1e-4)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        loss = lambda params: jnp.square(network.apply(params, x, t, cond) - x).mean()
        value, slope = jax.value_and_grad(loss)(params)
        update, state = optimizer.update(slope, state)
        return optax.apply_updates(params, update), state, value

    PEERS.DDIMScheduler(clip_sample=False).save_pretrained(folder)
    schedule = read_schedule(Path(folder) / "scheduler_config.json")

    @jax.jit
    def draw(params, keys, x, grid):
        predict = predictor(partial(network.apply, params), schedule.process, schedule.parameterization)
        return integrate(keys, x, guidance.unguided(predict, cond), schedule.process, DDIM(), grid)

    held = [jax.tree.map(jnp.copy, params), optimizer.init(params)]

    def train() -> None:
        held[0], held[1], value = step(*held)
        value.block_until_ready()

    keys, grid = jax.random.split(jax.random.key(0), BATCH), schedule.grid(STEPS)
    return {
        "forward": lambda: forward(params, x, t, cond).block_until_ready(),
        "train step": train,
        "sampling": lambda: draw(params, keys, x, grid).block_until_ready(),
    }


def theirs(name: str, model: Any, compiled: bool) -> dict:
    """The same in PyTorch."""
    run: Any = torch.compile(model) if compiled else model
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE)
    t = torch.full((BATCH,), 500)
    cond = {"encoder_hidden_states": torch.randn(BATCH, *TEXT)}
    cond = cond if name == "unet" else {"class_labels": torch.arange(BATCH)}
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    scheduler = PEERS.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)

    @torch.no_grad()
    def forward():
        return run(x, t, **cond).sample

    def train():
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(run(x, t, **cond).sample, x).backward()
        optimizer.step()

    @torch.no_grad()
    def draw():
        state = x
        for time_ in scheduler.timesteps:
            state = scheduler.step(run(state, time_.expand(BATCH), **cond).sample, time_, state).prev_sample

    return {"forward": forward, "train step": train, "sampling": draw}


def serve(pipe: Connection, name: str, side: str, folder: str) -> None:
    """A process of one side: it builds what is timed, and then answers each name of it with the seconds of one call
    after an untimed one, or with why there are none."""
    torch.set_num_threads(THREADS)
    PEERS.utils.logging.set_verbosity_error()
    runs = ours(name, folder) if side == "ours" else theirs(name, made(name), side == "compiled")
    while what := pipe.recv():
        try:
            runs[what]()
            start = time.perf_counter()
            runs[what]()
            pipe.send(time.perf_counter() - start)
        except Exception as error:  # torch.compile needs a C++ compiler, and not every machine has one
            if side != "compiled":
                raise
            pipe.send(str(error).splitlines()[0])


def measure(name: str, compiled: bool) -> dict:
    """Milliseconds of ours, and PyTorch's times over ours, each side in a process that sleeps while another is timed:
    threads of PyTorch wait at full speed for a while, and would take the processors from ours."""
    model = made(name)
    results: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    new = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        sides = {}
        for side in ("ours", "eager", "compiled") if compiled else ("ours", "eager"):
            sides[side], end = new.Pipe()
            new.Process(target=serve, args=(end, name, side, folder), daemon=True).start()
            end.close()

        def ask(side: str, what: str) -> Any:
            sides[side].send(what)
            return sides[side].recv()

        for what in ("forward", "train step", "sampling"):
            usable = []
            for side in sides:
                if isinstance(first := ask(side, what), str):
                    results["compile error"] = first
                    print(f"{name} {what}: {side} does not work: {first}", file=sys.stderr)
                else:
                    usable.append(side)
            rounds = [{side: ask(side, what) for side in usable} for _ in range(ROUNDS)]
            ratios = {
                side: sorted(times[side] / times["ours"] for times in rounds) for side in usable if side != "ours"
            }
            results[what] = {"ours_ms": 1e3 * statistics.median(times["ours"] for times in rounds)} | ratios
            said = [
                f"{side} {statistics.median(all_):.2f} ({all_[1]:.2f} to {all_[-2]:.2f})"
                for side, all_ in ratios.items()
            ]
            print(
                f"{name} {what:<12} ours {results[what]['ours_ms']:7.1f} ms   PyTorch over ours:",
                *said,
                file=sys.stderr,
            )
        for pipe in sides.values():
            pipe.send("")
    return results


def main(words: list[str]) -> None:
    PEERS.utils.logging.set_verbosity_error()
    names = [word for word in words if not word.startswith("-")] or ["unet", "dit"]
    results = {name: measure(name, "--no-compile" not in words) for name in names}
    if "--json" in words:
        print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
