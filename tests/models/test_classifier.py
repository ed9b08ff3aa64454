"""The classifier of noisy images: trained, it is the exact posterior, and it guides samples towards a class."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff import guidance, oracles
from jdiff.models import Classifier, Compute, functional
from jdiff.processes import VP
from jdiff.samplers import DDIM, grids, sample
from tests.models.draws import drawn

SMALL = Classifier(
    in_channels=1,
    num_classes=3,
    sample_size=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention=(1,),
    attention_head_dim=8,
    norm_num_groups=4,
)
NETWORK, PROCESS, PIXELS, STEPS = functional(SMALL.module), VP(), 16, 400
# What runs often here is worth the optimizations that other tests do without.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


@cache
def target():
    """Three classes of images of 4x4 pixels that overlap, of which the posterior at any noise is known."""
    means = 0.5 * np.random.default_rng(0).normal(size=(3, PIXELS)).astype(np.float32)
    spread = jnp.broadcast_to(0.5 * jnp.eye(PIXELS), (3, PIXELS, PIXELS))
    return oracles.classes(oracles.mixture(jnp.array([0.2, 0.3, 0.5]), jnp.asarray(means), spread), np.arange(3))


def log_probabilities(params, x, t):
    """log p(class | x_t), [B, 3], of the network for x [B, 16]."""
    logits = NETWORK.apply(params, x.reshape(-1, 4, 4, 1), 1000 * jnp.broadcast_to(t, x.shape[:1]), {})
    return jax.nn.log_softmax(logits)


def noised(key, n):
    """(x_t, t, class) with t uniform."""
    first, second, third = jax.random.split(key, 3)
    chosen = target().mixture
    label = jax.random.categorical(first, jnp.log(jnp.array([0.2, 0.3, 0.5])), shape=(n,))
    clean, eps = jax.random.normal(second, (2, n, PIXELS))
    t = jax.random.uniform(third, (n,), minval=0.01, maxval=1.0)
    return PROCESS.perturb(chosen.means[label] + jnp.sqrt(0.5) * clean, eps, t), t, label


@cache
def trained():
    """Parameters after a few seconds of cross entropy."""
    params = jax.jit(NETWORK.init)(jax.random.key(0))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def loss(params, key):
        x, t, label = noised(key, 128)
        return -jnp.take_along_axis(log_probabilities(params, x, t), label[:, None], 1).mean()

    @partial(jax.jit, compiler_options=OPTIMIZED)
    def step(params, state, key):
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), STEPS):
        params, state = step(params, state, key)
    return params


def divergence(log_p, log_q):
    """Mean over examples of the sum of p (log p - log q)."""
    return float((jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean())


@cache
def held_out():
    """(t, exact log-probabilities, those of the network, those of the network at mirrored timesteps)."""
    x, t, _ = noised(jax.random.key(2), 4000)
    run = jax.jit(log_probabilities)
    return t, target().log_posterior(PROCESS, x, t), run(trained(), x, t), run(trained(), x, 1.01 - t)


@pytest.mark.parametrize("low, high", [(0.01, 0.2), (0.2, 0.5), (0.5, 1.0)])
def test_trained_it_approaches_the_exact_posterior(low, high):
    """Of what is to know beyond the frequencies of the classes, it knows nearly all; 2e-3 nats are the resolution."""
    t, exact, ours, _ = held_out()
    chosen = (t >= low) & (t < high)
    frequencies = jnp.broadcast_to(jnp.log(jnp.array([0.2, 0.3, 0.5])), exact.shape)
    known = divergence(exact[chosen], frequencies[chosen])
    assert divergence(exact[chosen], ours[chosen]) < 0.1 * known + 2e-3


def test_it_uses_the_timestep():
    """The same x is less telling where there is more noise; told another timestep, the network is further off."""
    _, exact, ours, mistold = held_out()
    assert divergence(exact, mistold) > 5 * divergence(exact, ours)


def test_it_guides_samples_towards_a_class():
    """With the exact posterior in its place, a scale of one would give exactly the class."""
    n, wanted = 200, 0
    predict, cond = target().predictor(PROCESS), {"label": jnp.full(n, 3)}  # none
    log_weight = lambda x, t: log_probabilities(trained(), x, t)[:, wanted]
    keys, grid = jax.random.split(jax.random.key(4), n), grids.uniform(PROCESS, 25)
    belonging = lambda x: jnp.exp(target().log_posterior(PROCESS, x, grid[-1]))[:, wanted].mean()

    @partial(jax.jit, compiler_options=OPTIMIZED)
    def guided(scale):
        denoise = guidance.classifier(predict, cond, log_weight, scale, PROCESS)
        return sample(keys, denoise, PROCESS, DDIM(), grid, (PIXELS,))

    exact = belonging(target().given(wanted).sample(jax.random.key(5), 4000))
    free, once, more = (belonging(guided(scale)) for scale in (0.0, 1.0, 3.0))
    # A standard error of `free` is 0.03.
    assert abs(free - 0.2) < 0.1 and more > once
    assert free + 0.75 * (exact - free) < once < exact + 0.05


def test_pixels_have_positions():
    """With convolutions that are symmetric, nothing but its positions tells an image from itself turned around."""
    config = dataclasses.replace(SMALL, block_out_channels=(8,), attention=())
    network = functional(config.module)
    symmetric = lambda leaf: leaf + jnp.flip(leaf, (0, 1)) if leaf.ndim == 4 else leaf
    params = jax.tree.map(symmetric, drawn(network))
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))

    @jax.jit
    def changed(scale):
        pool = params["pool"] | {"positions": scale * params["pool"]["positions"]}
        apply = lambda x: network.apply(params | {"pool": pool}, x, jnp.zeros(1))
        return jnp.abs(apply(jnp.flip(x, (1, 2))) - apply(x)).max()

    assert changed(10.0) > 1e-2 and changed(0.0) < 1e-6


@pytest.mark.parametrize(
    "compute, tolerance",
    [
        *[(Compute(remat=policy), 1e-5) for policy in ("full", "dots", "dots_with_no_batch_dims")],
        (Compute(scan=False), 1e-5),
        (Compute(dtype="bfloat16"), 0.03),
    ],
)
def test_how_it_computes_changes_little(compute, tolerance):
    def run(compute):
        network = functional(dataclasses.replace(SMALL, compute=compute).module)
        params, x = drawn(network), jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
        loss = lambda x: (lambda logits: (jnp.square(logits).sum(), logits))(network.apply(params, x, jnp.ones(2)))
        gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(x)
        assert logits.dtype == jnp.float32
        return jnp.concatenate([gradient.ravel() / jnp.abs(gradient).max(), logits.ravel() / jnp.abs(logits).max()])

    plain = run(Compute())
    assert jnp.linalg.norm(run(compute) - plain) < tolerance * jnp.linalg.norm(plain)


def test_conditions_and_other_sizes_are_refused():
    params = jax.eval_shape(NETWORK.init, jax.random.key(0))
    run = lambda shape, cond: jax.eval_shape(NETWORK.apply, params, jnp.zeros(shape), jnp.zeros(1), cond)
    assert run((1, 4, 4, 1), {}).shape == (1, 3)
    with pytest.raises(ValueError, match="x: an image of 4x8 pixels; 4x4 wanted"):
        run((1, 4, 8, 1), {})
    with pytest.raises(ValueError, match="label"):
        run((1, 4, 4, 1), {"label": jnp.zeros(1, int)})


@pytest.mark.parametrize(
    "fields, complaint",
    [
        ({"num_classes": 1}, "num_classes: 1"),
        ({"layers_per_block": 0}, "layers_per_block: 0"),
        ({"attention": (4,)}, r"attention: levels \[4\]"),
        ({"norm_num_groups": 48}, r"block_out_channels: \[128, 256, 512\] .*norm_num_groups=48"),
        ({"attention_head_dim": 256}, r"block_out_channels: \[384\] .*attention_head_dim=256"),
        ({"sample_size": 60}, "sample_size: 60 .* 8"),
    ],
)
def test_impossible_configs_are_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        Classifier(**fields)
