"""What the original files of Stable Diffusion call each tensor, and how they store it.

Names in them are those of the modules in the code that trained the networks: CompVis/latent-diffusion (U-Net and
autoencoder), mlfoundations/open_clip, and Stability-AI/sd3-ref. diffusers and transformers have the same modules under
other names. What is stored otherwise:

- open_clip and sd3-ref hold queries, keys and values as one tensor, behind one another along its first axis.
- open_clip multiplies by its projection from the right: it is the transpose of ours.
- The attention of the autoencoder is made of 1x1 convolutions there, of dense layers here.
- Where sd3-ref modulates without a gate, the shift comes first; in diffusers the scale does.

A table goes from the name of a module or tensor in diffusers to its `Source`; what is below a module keeps its name.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jdiff.models import AutoencoderKL, MMDiT, UNet2DCondition

Operation = Callable[[np.ndarray], np.ndarray]


def same(x: np.ndarray) -> np.ndarray:
    """The tensor as it is stored."""
    return x


def third(i: int, x: np.ndarray) -> np.ndarray:
    """One of three parts along axis 0; all of it where that is no multiple of three, which then has no right shape."""
    return np.split(x, 3)[i] if x.ndim and len(x) % 3 == 0 else x


def swapped(x: np.ndarray) -> np.ndarray:
    """Its second half along axis 0 before the first; as it is where there are no halves."""
    return np.concatenate(np.split(x, 2)[::-1]) if x.ndim and len(x) % 2 == 0 else x


def transposed(x: np.ndarray) -> np.ndarray:
    """Its axes in the other order."""
    return x.T


def dense(x: np.ndarray) -> np.ndarray:
    """A convolution [out, in, 1, 1] as a matrix [out, in]."""
    return x[:, :, 0, 0] if x.ndim == 4 and x.shape[2:] == (1, 1) else x


class Source(NamedTuple):
    """Where a tensor is in the original file, and what makes it ours."""

    name: str
    operation: Operation = same


Table = Mapping[str, Source]


def looked_up(table: Mapping[str, Any], name: str) -> tuple[Any, str] | None:
    """The entry of a name or of the module nearest above it, and what of the name is below that; None for neither."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        found = table.get(".".join(parts[:cut]))
        if found is not None:
            return found, "".join(f".{part}" for part in parts[cut:])
    return None


def inverse(table: Table) -> dict[str, list[tuple[str, Operation]]]:
    """From an original name to what is made of it."""
    made: dict[str, list[tuple[str, Operation]]] = {}
    for name, source in table.items():
        made.setdefault(source.name, []).append((name, source.operation))
    return made


def _sources(pairs: Iterable[tuple[str, str]]) -> dict[str, Source]:
    return {name: Source(original) for name, original in pairs}


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet(config: UNet2DCondition) -> Table:
    """Of a U-Net, whose blocks are counted through all levels, each with its halving or before its doubling."""
    assert isinstance(config.layers_per_block, int)
    depth, levels = config.layers_per_block, range(len(config.block_out_channels))
    pairs = [("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2")]
    for name, original in (("time_embedding", "time_embed"), ("add_embedding", "label_emb.0")):
        pairs += [(f"{name}.linear_1", f"{original}.0"), (f"{name}.linear_2", f"{original}.2")]
    for level in levels:
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        first, crossed = 1 + level * (depth + 1), config.up_block_types[level].startswith("Cross")
        for i in range(depth):
            pairs += _resnet(f"{down}.resnets.{i}", f"input_blocks.{first + i}.0")
            pairs.append((f"{down}.attentions.{i}", f"input_blocks.{first + i}.1"))
        pairs.append((f"{down}.downsamplers.0.conv", f"input_blocks.{first + depth}.0.op"))
        for i in range(depth + 1):
            pairs += _resnet(f"{up}.resnets.{i}", f"output_blocks.{first - 1 + i}.0")
            if crossed:
                pairs.append((f"{up}.attentions.{i}", f"output_blocks.{first - 1 + i}.1"))
        last = f"output_blocks.{first - 1 + depth}"
        pairs.append((f"{up}.upsamplers.0.conv", f"{last}.{2 if crossed else 1}.conv"))
    pairs += _resnet("mid_block.resnets.0", "middle_block.0") + _resnet("mid_block.resnets.1", "middle_block.2")
    return _sources([*pairs, ("mid_block.attentions.0", "middle_block.1")])


def _resnet(name: str, original: str) -> list[tuple[str, str]]:
    return [(f"{name}.{ours}", f"{original}.{theirs}") for ours, theirs in RESNET.items()]


def autoencoder(config: AutoencoderKL) -> Table:
    """Of an autoencoder; levels of the decoder are counted from the image on, ours from the latents on."""
    pairs = [(name, name) for name in ("quant_conv", "post_quant_conv")]
    attention = {}
    levels = len(config.block_out_channels)
    halves = (("encoder", "down", config.layers_per_block), ("decoder", "up", config.layers_per_block + 1))
    for half, way, depth in halves:
        pairs += [(f"{half}.{name}", f"{half}.{name}") for name in ("conv_in", "conv_out")]
        pairs.append((f"{half}.conv_norm_out", f"{half}.norm_out"))
        for level in range(levels):
            ours, theirs = (
                f"{half}.{way}_blocks.{level}",
                f"{half}.{way}.{level if way == 'down' else levels - 1 - level}",
            )
            pairs.append((f"{ours}.{way}samplers.0", f"{theirs}.{way}sample"))
            for i in range(depth):
                pairs += _plain(f"{ours}.resnets.{i}", f"{theirs}.block.{i}")
        for i in range(2):
            pairs += _plain(f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}")
        ours, theirs = f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1"
        pairs.append((f"{ours}.group_norm", f"{theirs}.norm"))
        for name, original in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            attention[f"{ours}.{name}"] = Source(f"{theirs}.{original}", dense)
    return _sources(pairs) | attention


def _plain(name: str, original: str) -> list[tuple[str, str]]:
    return [(f"{name}.conv_shortcut", f"{original}.nin_shortcut"), (name, original)]


def transformers(config: Any) -> Table:
    """Of an encoder whose names are those of transformers."""
    return _sources((name, name) for name in ("text_model", "text_projection", "shared", "encoder"))


def open_clip(config: Any) -> Table:
    """Of the encoder of prompts of open_clip."""
    table = _sources(
        [
            ("text_model.embeddings.token_embedding", "token_embedding"),
            ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
            ("text_model.final_layer_norm", "ln_final"),
        ]
    )
    table["text_projection.weight"] = Source("text_projection", transposed)
    same_way = (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"))
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        pairs = (*same_way, ("self_attn.out_proj", "attn.out_proj"))
        table |= _sources((f"{ours}.{name}", f"{theirs}.{original}") for name, original in pairs)
        for i, part in enumerate("qkv"):
            for leaf in ("weight", "bias"):
                source = Source(f"{theirs}.attn.in_proj_{leaf}", partial(third, i))
                table[f"{ours}.self_attn.{part}_proj.{leaf}"] = source
    return table


def mmdit(config: MMDiT) -> Table:
    """Of an MM-DiT. The last block modulates the text without a gate, as the last layer does the image."""
    pairs = [("pos_embed.proj", "x_embedder.proj"), ("pos_embed.pos_embed", "pos_embed")]
    pairs += [("context_embedder", "context_embedder"), ("proj_out", "final_layer.linear")]
    for name, original in (("timestep_embedder", "t_embedder"), ("text_embedder", "y_embedder")):
        pairs += [(f"time_text_embed.{name}.linear_{i + 1}", f"{original}.mlp.{2 * i}") for i in range(2)]
    table = _sources(pairs) | {"norm_out.linear": Source("final_layer.adaLN_modulation.1", swapped)}
    for i in range(config.num_layers):
        ours, image, text = f"transformer_blocks.{i}", *(f"joint_blocks.{i}.{way}_block" for way in ("x", "context"))
        last = swapped if i == config.num_layers - 1 else same
        table[f"{ours}.norm1.linear"] = Source(f"{image}.adaLN_modulation.1")
        table[f"{ours}.norm1_context.linear"] = Source(f"{text}.adaLN_modulation.1", last)
        for name, original in (("ff", image), ("ff_context", text)):
            table[f"{ours}.{name}.net.0.proj"] = Source(f"{original}.mlp.fc1")
            table[f"{ours}.{name}.net.2"] = Source(f"{original}.mlp.fc2")
        own, added = ("to_q", "to_k", "to_v", "to_out.0"), ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        table |= _attention(f"{ours}.attn", f"{image}.attn", own, ("norm_q", "norm_k"))
        table |= _attention(f"{ours}.attn", f"{text}.attn", added, ("norm_added_q", "norm_added_k"))
        table |= _attention(f"{ours}.attn2", f"{image}.attn2", own, ("norm_q", "norm_k"))
    return table


def _attention(ours: str, theirs: str, products: tuple[str, ...], norms: tuple[str, ...]) -> dict[str, Source]:
    *qkv, out = products
    table = {f"{ours}.{name}": Source(f"{theirs}.qkv", partial(third, i)) for i, name in enumerate(qkv)}
    table[f"{ours}.{out}"] = Source(f"{theirs}.proj")
    return table | _sources((f"{ours}.{n}", f"{theirs}.{o}") for n, o in zip(norms, ("ln_q", "ln_k"), strict=True))
