"""Networks beside PyTorch's classes of the same name, with small random weights.

torch, diffusers and transformers are in the extra `oracles`. Without them these tests are skipped; with
JDIFF_ORACLES=required in the environment, as the gate sets it, that is a failure.
"""

import importlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.interop import from_pretrained, save_pretrained

if os.environ.get("JDIFF_ORACLES") == "required":
    torch, diffusers, transformers = (importlib.import_module(n) for n in ("torch", "diffusers", "transformers"))
else:
    reason = 'torch, diffusers and transformers are not installed: pip install -e ".[oracles]"'
    torch, diffusers, transformers = (
        pytest.importorskip(name, reason=reason) for name in ("torch", "diffusers", "transformers")
    )
diffusers.utils.logging.set_verbosity_error()
OUTPUT, GRADIENT = 2e-5, 1e-4  # relative to the greatest value


def drawn(model, seed=0, scale=0.05):
    """The model with every parameter moved away from where it starts, where zeros would hide what they multiply."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nchw(x):
    return torch.tensor(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def nhwc(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def apart(ours, theirs):
    """The greatest difference over the greatest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def agree(model, theirs, ours, x, folder, axes=(nchw, nhwc)):
    """`theirs(model, x)` and `ours(loaded, x)` agree in value and in the gradient at x, also after a round trip through
    our files, which the model's class loads without a missing or an unused tensor. Returns what was loaded."""
    into, out_of = axes
    model.save_pretrained(folder / "theirs")
    loaded = from_pretrained(folder / "theirs")
    x_theirs = into(x).requires_grad_()
    y_theirs = theirs(model, x_theirs)
    weights = images(*out_of(y_theirs).shape, seed=1)
    (y_theirs * into(weights)).sum().backward()
    value = jax.jit(lambda params, x: ours(loaded.network, params, x))
    y = value(loaded.params, jnp.asarray(x))
    slope = jax.jit(jax.grad(lambda x, params: (ours(loaded.network, params, x) * weights).sum()))
    assert apart(y, out_of(y_theirs)) < OUTPUT
    assert apart(slope(jnp.asarray(x), loaded.params), out_of(x_theirs.grad)) < GRADIENT

    save_pretrained(folder / "ours", loaded.config, loaded.params)
    again, info = type(model).from_pretrained(folder / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert torch.equal(theirs(again.eval(), into(x)), theirs(model, into(x)))
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    reloaded = from_pretrained(folder / "ours")
    assert reloaded.config == loaded.config
    assert jax.tree.all(jax.tree.map(np.array_equal, reloaded.params, loaded.params))
    return loaded


def edited(folder, **fields):
    """Changes fields of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
