"""What PyTorch calls each parameter of a network, and how it stores it.

Our modules have the names of diffusers' and transformers' modules, but where those are numbers. What differs:

- `kernel` [in, out] or [H, W, in, out] is `weight` [out, in] or [out, in, H, W]; `scale` and `embedding` are `weight`.
- Under `each`, the parameters of equal blocks are stacked along a first axis; PyTorch has one tensor a block.
- diffusers' DiT holds a copy of the timestep and label embedder in every block; we hold it once.
- Files of transformers' classes differ by the release that wrote them: `held` finds what is theirs in a file.
"""

import re
from collections.abc import Container
from typing import NamedTuple

import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# Of every network: our names (with dots around) and theirs.
NAMES = ((r"\.to_out\.", ".to_out.0."), (r"\.widen\.", ".net.0.proj."), (r"\.narrow\.", ".net.2."))
# Of EDM's code, where an attention is part of the residual block before it.
EDM = (
    (r"^\.mapping\.", "."),
    (r"\.resnet\.conv1\.", ".conv0."),
    (r"\.resnet\.conv2\.", ".conv1."),
    (r"\.resnet\.norm1\.", ".norm0."),
    (r"\.resnet\.norm2\.", ".norm1."),
    (r"\.resnet\.conv_shortcut\.", ".skip."),
    (r"\.resnet\.time_emb_proj\.", ".affine."),
    (r"\.attention\.norm\.", ".norm2."),
    (r"\.attention\.", "."),
    (r"\.map_noise\.weight$", ".map_noise.freqs"),
)
# Of a class, before those.
NAMES_OF = {
    "SongUNet": EDM,
    "DhariwalUNet": EDM,
    "T5EncoderModel": (
        (r"\.each\.attention\.", ".each.layer.0."),
        (r"\.each\.feed_forward\.", ".each.layer.1."),
        (r"\.relative_attention_bias\.", ".block.0.layer.0.SelfAttention.relative_attention_bias."),
    ),
}
# What files of before diffusers 0.18 call the parts of an attention over pixels: their names today, and then.
OLDER = ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn."))
# Of a class: a prefix that the files of some releases leave out; other names, which files use instead or as well.
PREFIXES = {"CLIPTextModel": "text_model.", "CLIPTextModelWithProjection": "text_model."}
TWINS = {"T5EncoderModel": {"shared.weight": "encoder.embed_tokens.weight"}}
# Of a class: its part of the file of a whole CLIPModel, which is one that holds WHOLE.
PARTS = {
    "CLIPTextModel": ("text_model.",),
    "CLIPTextModelWithProjection": ("text_model.", "text_projection."),
    "CLIPVisionModelWithProjection": ("vision_model.", "visual_projection."),
}
WHOLE = "logit_scale"
# Of a class: what files of its siblings hold besides.
SIBLINGS = {
    "CLIPTextModel": ("text_projection.",),
    "T5EncoderModel": ("decoder.", "lm_head."),
}
# Of a class: a prefix that is held once here and in every block there.
COPIES = {"DiTTransformer2DModel": ("embedder.", "transformer_blocks.{}.norm1.emb.", "num_layers")}


class Place(NamedTuple):
    """Where the tensors of one parameter are: `keys`, each of `shape`, as PyTorch has it."""

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool  # along axis 0 of ours; otherwise several keys are copies of one
    axes: tuple[int, ...]  # of theirs, in the order of ours

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor with the axes of ours."""
        return tensor.transpose(self.axes)

    def theirs(self, parameter: np.ndarray) -> np.ndarray:
        """The inverse of `ours`."""
        return parameter.transpose(np.argsort(self.axes))


def place(config, path: tuple[str, ...], shape: tuple[int, ...]) -> Place:
    """Where the parameter at a path of the network of `config` is."""
    stacked, count = "each" in path, shape[0] if "each" in path else 1
    shape = shape[1:] if stacked else shape
    *parents, leaf = path
    axes = tuple(range(len(shape)))
    if leaf == "kernel":
        # Ours are theirs, moved: out to the end, in before it.
        axes = (*axes[2:], 1, 0)
    name = ".".join(("", *parents, LEAVES.get(leaf, leaf)))
    for ours, theirs in (*NAMES_OF.get(config.published, ()), *NAMES):
        name = re.sub(ours, theirs, name)
    name = name[1:]
    keys = tuple(_numbered(name, i) for i in range(count)) if stacked else _copies(config, name)
    their_shape = [0] * len(shape)
    for position, axis in enumerate(axes):
        their_shape[axis] = shape[position]
    return Place(keys, tuple(their_shape), stacked, axes)


def _numbered(name: str, i: int) -> str:
    """The name of block i of a stack; a number before `each` is that of the stack's first."""
    return re.sub(r"(?:\.(\d+))?\.each\.", lambda found: f".{int(found[1] or 0) + i}.", name)


def _copies(config, name: str) -> tuple[str, ...]:
    if config.published not in COPIES:
        return (name,)
    prefix, everywhere, field = COPIES[config.published]
    if not name.startswith(prefix):
        return (name,)
    return tuple(everywhere.format(i) + name.removeprefix(prefix) for i in range(getattr(config, field)))


def held(config, where: Place, names: Container[str]) -> Place:
    """The place with the names that a file holding `names` uses for the class of `config`."""
    prefix, twins = PREFIXES.get(config.published, ""), TWINS.get(config.published, {})

    def found(key: str) -> list[str]:
        first = next((name for name in (key, key.removeprefix(prefix), _before(key)) if name in names), None)
        return [name for name in (first, twins.get(key)) if name is not None and name in names] or [key]

    return where._replace(keys=tuple(name for key in where.keys for name in found(key)))


def _before(name: str) -> str:
    for today, then in OLDER:
        name = name.replace(today, then)
    return name


def unneeded(config, name: str, names: Container[str]) -> bool:
    """Whether a file may hold a tensor that the network of `config` does not use: the positions 0, 1, 2, ... that old
    files of transformers list, a sibling's part, and the other parts of a whole CLIPModel."""
    if name.endswith("embeddings.position_ids") or name.startswith(SIBLINGS.get(config.published, ())):
        return True
    return WHOLE in names and config.published in PARTS and not name.startswith(PARTS[config.published])
