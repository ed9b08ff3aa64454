"""Stable Diffusion 1, 2, XL and 3 from one safetensors file, as its authors published it.

    networks = from_single_file("v1-5-pruned-emaonly.safetensors")
    config, network, params, _ = networks["unet"]

Such a file holds all networks under the names of the code that trained them, and no config and no tokenizer. Prefixes:

    U-Net or transformer   model.diffusion_model.          autoencoder   first_stage_model.
    encoders of prompts    cond_stage_model. in 1 and 2, conditioner.embedders. in XL, text_encoders. in 3

The family is told by these names, the configs by shapes (`ldm_configs`), and tensors are renamed and read one by one
(`ldm_names`). Every tensor must be one of a network's, or one of those that training leaves behind: the averaged copy
of the weights, the noise schedule, statistics and losses. Averaged weights are not read: files published for drawing
hold them in the place of the others.
"""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jdiff.interop import ldm_configs, ldm_names
from jdiff.interop.configs import replaced
from jdiff.interop.ldm_configs import Shapes
from jdiff.interop.ldm_names import Table
from jdiff.interop.original_files import open_original
from jdiff.interop.pretrained import Pretrained, read_network
from jdiff.interop.tensors import Entry, Tensors
from jdiff.models import Compute

# What training leaves in files, and no network reads.
UNNEEDED = re.compile(
    r"v_pred|ztsnr|epoch|global_step|optimizer_states\..*|embedding_manager\..*"
    r"|(first_stage_model\.)?model_ema\..*|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recip(m1)?_alphas_cumprod|betas|logvar"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|scale_factor|denoiser\.sigmas"
    r"|first_stage_model\.loss\..*|.*\.logit_scale"
    # Stable Diffusion 2 reads what the last of 24 layers is given.
    r"|cond_stage_model\.model\.(text_projection|transformer\.resblocks\.23\..*)"
)
# By how a name begins: what else comes as one file.
UNSUPPORTED = {
    "conditioner.embedders.0.model.": "the refiner of Stable Diffusion XL",
    "edm_mean": "Playground 2.5",
    "control_model.": "a ControlNet",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "lora_": "low-rank changes of weights",
}


class Part(NamedTuple):
    """A network in a file."""

    prefix: str
    config: Callable[[Shapes], Any]
    table: Callable[[Any], Table]
    optional: bool = False
    added: Callable[[Any], dict[str, np.ndarray]] = lambda config: {}
    """What a file may leave out, and its value."""


class Family(NamedTuple):
    """What the files of a family have in common."""

    name: str
    marker: str
    """How the names of some of its tensors begin, and those of no other family."""
    kind: str
    """Its pipeline in diffusers."""
    scheduler: dict[str, Any]
    """Its published one."""
    parts: dict[str, Part]
    settings: Mapping[str, Any] = MappingProxyType({})
    """What the published pipeline says besides its parts."""


NETWORK, VAE = "model.diffusion_model.", "first_stage_model."
# What tells that there is a part, under whatever names such files have.
KNOWN = {
    "U-Net": (NETWORK, "input_blocks.", "down_blocks.", "joint_blocks."),
    "autoencoder": (VAE, "encoder.down.", "decoder.up.", "encoder.down_blocks.", "decoder.up_blocks."),
    "encoders of prompts": ("cond_stage_model.", "conditioner.", "text_encoders.", "text_model."),
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
CHAIN = BETAS | {"steps_offset": 1, "prediction_type": "epsilon"}
TO_FIRST = CHAIN | {"set_alpha_to_one": False}


def _unet(pixels: int, **options: Any) -> Part:
    return Part(NETWORK, partial(ldm_configs.unet, sample_size=pixels // 8, **options), ldm_names.unet)


def _vae(pixels: int, scale: float, shift: float | None = None) -> Part:
    config = partial(ldm_configs.autoencoder, sample_size=pixels, scale=scale, shift=shift)
    return Part(VAE, config, ldm_names.autoencoder)


def _open_clip(prefix: str, project: bool) -> Part:
    return Part(prefix, partial(ldm_configs.open_clip, project=project), ldm_names.open_clip)


def _clip_of_3(name: str, hidden_act: str) -> Part:
    return Part(
        f"text_encoders.{name}.transformer.",
        partial(ldm_configs.clip, project=True, hidden_act=hidden_act),
        ldm_names.transformers,
        optional=True,
        # CLIP's own projection is not used: the pooled vector enters as it is.
        added=lambda config: {"text_projection.weight": np.eye(config.hidden_size, dtype=np.float32)},
    )


FAMILIES = (
    Family(
        "Stable Diffusion 1",
        "cond_stage_model.transformer.",
        "StableDiffusionPipeline",
        {"_class_name": "PNDMScheduler"} | TO_FIRST | {"skip_prk_steps": True},
        {
            "unet": _unet(512, heads=8),
            "vae": _vae(512, 0.18215),
            "text_encoder": Part("cond_stage_model.transformer.", ldm_configs.clip, ldm_names.transformers),
        },
    ),
    Family(
        "Stable Diffusion 2",
        "cond_stage_model.model.",
        "StableDiffusionPipeline",
        {"_class_name": "DDIMScheduler"} | TO_FIRST | {"clip_sample": False, "prediction_type": "v_prediction"},
        {
            "unet": _unet(768, heads=None),
            "vae": _vae(768, 0.18215),
            "text_encoder": _open_clip("cond_stage_model.model.", project=False),
        },
    ),
    Family(
        "Stable Diffusion XL",
        "conditioner.embedders.1.model.",
        "StableDiffusionXLPipeline",
        {"_class_name": "EulerDiscreteScheduler"} | CHAIN | {"timestep_spacing": "leading"},
        {
            "unet": _unet(1024, heads=None, sizes=True),
            "vae": _vae(1024, 0.13025),
            "text_encoder": Part("conditioner.embedders.0.transformer.", ldm_configs.clip, ldm_names.transformers),
            "text_encoder_2": _open_clip("conditioner.embedders.1.model.", project=True),
        },
        {"force_zeros_for_empty_prompt": True},
    ),
    Family(
        "Stable Diffusion 3",
        "model.diffusion_model.joint_blocks.",
        "StableDiffusion3Pipeline",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
        {
            "transformer": Part(NETWORK, partial(ldm_configs.mmdit, sample_size=128), ldm_names.mmdit),
            "vae": _vae(1024, 1.5305, 0.0609),
            "text_encoder": _clip_of_3("clip_l", "quick_gelu"),
            "text_encoder_2": _clip_of_3("clip_g", "gelu"),
            "text_encoder_3": Part(
                "text_encoders.t5xxl.transformer.", ldm_configs.t5, ldm_names.transformers, optional=True
            ),
        },
    ),
)


def from_single_file(
    path: str | os.PathLike, *, compute: Compute | None = None, strict: bool = True, **options: Any
) -> dict[str, Pretrained]:
    """The networks of a file by the names of diffusers' parts: unet or transformer, vae, text_encoder and so on.

    `strict` and `options` are those of `from_pretrained`, for each network. What a network predicts is not told by a
    file; `TextToImage.from_single_file` asks. An encoder of prompts that a file of Stable Diffusion 3 leaves out is not
    among the networks. Raises ValueError for a file of no known family, of sizes that no network has, without one of
    the networks, or with pickled weights; for each network as `from_pretrained`, with the names of the file, and for
    tensors that belong to none with the first; FileNotFoundError where there is no file.
    """
    with open_original(Path(path)) as tensors:
        family = family_of(tensors.entries, str(path))
        parts = parts_of(family, tensors.entries, str(path))
        networks = {}
        known = tuple(part.prefix for part in family.parts.values())
        others = {name for name in tensors.entries if not name.startswith(known) and not UNNEEDED.fullmatch(name)}
        for name, (part, config) in parts.items():
            config = config if compute is None else replaced(config, compute=compute)
            view = renamed(tensors, part, config, others)
            networks[name] = read_network(config, view, f"{path}, {name}", strict=strict, **options)
            others = set()
    return networks


def family_of(entries: Mapping[str, Entry], source: str) -> Family:
    """The family that tensors are of. Raises ValueError for another, which it names where it is known."""
    begins = lambda prefix: any(name.startswith(prefix) for name in entries)
    found = next((what for prefix, what in UNSUPPORTED.items() if begins(prefix)), None)
    family = next((family for family in FAMILIES if begins(family.marker)), None)
    if family is None or found is not None or not begins(NETWORK):
        what = found or _alone(entries)
        names = ", ".join(family.name for family in FAMILIES)
        raise ValueError(f"{source} is {what}; there are {names}, each with its U-Net or transformer as {NETWORK}*")
    return family


def _alone(entries: Mapping[str, Entry]) -> str:
    """What a file is that lacks what tells its family."""
    held = [what for what, prefixes in KNOWN.items() if any(name.startswith(prefixes) for name in entries)]
    missing = [what for what in KNOWN if what not in held]
    parts = f" It has {' and '.join(held)} but no {' and no '.join(missing)}" if held and missing else ""
    return f"of no known family; its tensors are {', '.join(sorted(entries)[:3]) or 'none'}, ...{parts}"


def parts_of(family: Family, entries: Mapping[str, Entry], source: str) -> dict[str, tuple[Part, Any]]:
    """The networks that there are, with their configs; all of them before any is read."""
    found = {}
    entries = {name: entry for name, entry in entries.items() if not UNNEEDED.fullmatch(name)}
    for name, part in family.parts.items():
        shapes = Shapes(entries, part.prefix, source)
        if shapes.found:
            found[name] = (part, part.config(shapes))
        elif not part.optional:
            raise ValueError(f"{source} is {family.name} without its {name}: it has no {part.prefix}*")
    return found


def renamed(tensors: Tensors, part: Part, config: Any, others: set[str]) -> Tensors:
    """The tensors of a network under diffusers' names; what has none keeps its own, as do `others` of the file."""
    table = part.table(config)
    inverse = ldm_names.inverse(table)
    added = part.added(config)
    places: dict[str, tuple[str, ldm_names.Operation]] = {}
    for name in tensors.entries:
        if name in others:
            places[name] = (name, ldm_names.same)
        if not name.startswith(part.prefix) or UNNEEDED.fullmatch(name):
            continue
        made, below = ldm_names.looked_up(inverse, name.removeprefix(part.prefix)) or ([], "")
        ours = {f"{new}{below}": (name, operation) for new, operation in made}
        places |= ours if ours and not ours.keys() & places.keys() else {name: (name, ldm_names.same)}
    added = {name: value for name, value in added.items() if name not in places}

    def entry(name: str, operation: ldm_names.Operation) -> Entry:
        # Of the size of one number, whatever its shape.
        stand_in = np.broadcast_to(np.int8(0), tensors.entries[name].shape)
        return Entry(tensors.entries[name].dtype, operation(stand_in).shape)

    def read(name: str) -> np.ndarray:
        if name in added:
            return added[name]
        original, operation = places[name]
        return operation(tensors.read(original))

    def spelled(name: str) -> str:
        if name in places:
            original = places[name][0]
        else:
            source, below = ldm_names.looked_up(table, name) or (ldm_names.Source(name), "")
            original = f"{part.prefix}{source.name}{below}"
        spelled = tensors.spelled(original)
        return spelled if original.removeprefix(part.prefix) == name else f"{spelled} (as {name})"

    entries = {name: entry(*place) for name, place in places.items()}
    entries |= {name: Entry("F32", value.shape) for name, value in added.items()}
    return Tensors(entries=entries, read=read, spelled=spelled)
