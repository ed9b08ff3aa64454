"""Folders of pipelines as they are published: which open, what they lack, and when that is said."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jdiff import TextToImage
from jdiff.interop import save_pretrained
from jdiff.models import CLIPTextWithProjection, UNet2DCondition, functional
from jdiff.pipelines import ClassToImage, prompt_encoder
from tests.models.draws import drawn
from tests.pipelines.folders import LENGTH, NETWORKS, SCHEDULER, stable_diffusion
from tests.text.folders import clip_folder

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "../shared/published"
XL = {
    "unet": UNet2DCondition(
        sample_size=(8, 12),
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=(1, 2),
        cross_attention_dim=16,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 + 6 * 4,
        time_cond_proj_dim=4,
    ),
    "vae": NETWORKS["vae"],
    "text_encoder": NETWORKS["text_encoder"],
    "text_encoder_2": CLIPTextWithProjection(
        **{field: getattr(NETWORKS["text_encoder"], field) for field in ("vocab_size", "eos_token_id")},
        hidden_size=8,
        intermediate_size=8,
        projection_dim=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    ),
}
# As stabilityai/stable-diffusion-xl-base-1.0 was first published.
XL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
XL_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def put(path, fields):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(fields))


def changed(folder, name, **fields):
    """Sets fields of one of a folder's JSON files."""
    put(folder / name, json.loads((folder / name).read_text()) | fields)


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xl")
    for name, config in XL.items():
        save_pretrained(folder / name, config, drawn(functional(config.module), scale=0.5))
    for name in ("tokenizer", "tokenizer_2"):
        clip_folder(folder / name, limit=LENGTH)
    put(folder / "scheduler" / "scheduler_config.json", XL_SCHEDULER)
    put(folder / "model_index.json", XL_INDEX)
    return folder


@pytest.fixture
def copy(tmp_path):
    """A copy of a folder whose files may be changed; weights are links."""

    def copied(folder):
        return Path(shutil.copytree(folder, tmp_path / "copy", copy_function=linked))

    def linked(source, target):
        return os.symlink(source, target) if source.endswith(".safetensors") else shutil.copy(source, target)

    return copied


def test_the_published_folder_of_xl_opens_and_draws(xl, copy):
    """With what its scheduler's file says in vain, sizes that are not square, and a network that is told the scale of
    guidance (latent consistency), which asks for one evaluation a step."""
    pipeline = TextToImage.from_pretrained(xl)
    assert pipeline.settings == {"force_zeros_for_empty_prompt": True}  # diffusers' default
    draw = lambda guidance: pipeline(["a cat"], seeds=[1], steps=2, guidance=guidance)
    images = draw(4.0)
    assert images.shape == (1, 16, 24, 3)
    assert np.abs(images - draw(1.0)).max() > 1e-4
    with pytest.raises(ValueError, match="negative: this network is told the scale of guidance"):
        pipeline(["a cat"], seeds=[1], steps=2, negative=["a dog"])


def test_an_index_has_the_last_word(sd, copy):
    """On settings, and on the class of a scheduler, as in diffusers."""
    folder = copy(sd)
    changed(folder, "model_index.json", requires_safety_checker=None, scheduler=["diffusers", "PNDMScheduler"])
    pipeline = TextToImage.from_pretrained(folder)
    assert pipeline.settings == {"requires_safety_checker": None}
    changed(folder, "model_index.json", _class_name="LatentConsistencyModelPipeline", scheduler=["diffusers", "Never"])
    with pytest.raises(ValueError, match="Never"):
        TextToImage.from_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "version", "size"),
    [
        ("StableDiffusionPipeline", "0.6.0", 64),
        ("StableDiffusionPipeline", "0.8.0.dev0", 64),
        ("StableDiffusionPipeline", "0.9.0.dev0", 8),
        ("StableDiffusionPipeline", None, 8),
        ("LatentConsistencyModelPipeline", "0.6.0", 8),
    ],
)
def test_the_size_that_old_versions_wrote(kind, version, size, sd, copy):
    """Is half of that which Stable Diffusion 1 was trained on; some of diffusers' pipelines correct it."""
    folder = copy(sd)
    changed(folder, "model_index.json", _class_name=kind)
    changed(folder, "unet/config.json", _diffusers_version=version)
    assert TextToImage.from_pretrained(folder).networks["unet"].config.sample_size == size


UNET = {
    "inpainting": ({"in_channels": 9}, "unet takes 9 channels where latents have 4: it also takes a mask"),
    "instructions": ({"in_channels": 8}, "unet takes 8 channels where latents have 4: it also takes the latents of a"),
    "upscaler": ({"in_channels": 7}, "unet takes 7 channels .* a small picture, which it enlarges"),
    "depth": ({"in_channels": 5}, "unet takes 5 channels .* a map of depths"),
    "narrow": ({"in_channels": 3}, "unet takes 3 channels where latents have 4$"),
    "variance": ({"out_channels": 8}, "unet gives 8 channels where latents have 4"),
    "label": ({"num_class_embeds": 10}, r"unet takes a label \(class_embed_type=None\)"),
    "width": ({"cross_attention_dim": 768}, "unet takes texts of width 768, and text_encoder give 8"),
    "sizes": (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 30,
        },
        "unet has addition_embed_type='text_time', which StableDiffusionPipeline has not",
    ),
}


@pytest.mark.parametrize("case", UNET)
def test_a_network_that_takes_more_than_a_prompt_is_refused_before_weights_are_read(case, sd, copy):
    fields, message = UNET[case]
    folder = copy(sd)
    changed(folder, "unet/config.json", **fields)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=message) as refused:
        TextToImage.from_pretrained(folder)
    assert str(folder) in str(refused.value)


def test_what_refines_pictures_is_refused_by_the_part_or_input_that_is_missing(xl, copy):
    folder = copy(xl)
    index = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    changed(folder, "model_index.json", **index, text_encoder=[None, None], tokenizer=[None, None])
    with pytest.raises(ValueError, match=r"parts missing \['text_encoder', 'tokenizer'\]"):
        TextToImage.from_pretrained(folder)
    put(folder / "model_index.json", XL_INDEX | index)
    changed(folder, "unet/config.json", projection_class_embeddings_input_dim=6 + 5 * 4)
    with pytest.raises(ValueError, match="unet takes an aesthetic score: it refines pictures"):
        TextToImage.from_pretrained(folder)
    changed(folder, "unet/config.json", projection_class_embeddings_input_dim=31)
    with pytest.raises(ValueError, match=r"unet takes 31 numbers .* and gets 6 \+ 6 x 4"):
        TextToImage.from_pretrained(folder)


def test_a_refusal_comes_before_the_first_weight(sd, copy):
    folder = copy(sd)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"text_encoder holds no model\.safetensors"):
        TextToImage.from_pretrained(folder)
    changed(folder, "scheduler/scheduler_config.json", beta_schedule="magic")
    with pytest.raises(ValueError, match="beta_schedule"):
        TextToImage.from_pretrained(folder)


def test_variants(sd, copy):
    """Of the parts that have it; the others have their plain weights, as in diffusers."""
    folder = copy(sd)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(FileNotFoundError, match="which variant='fp16' reads"):
        TextToImage.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="has no weights of variant 'bf16'; it has fp16"):
        TextToImage.from_pretrained(folder, variant="bf16")
    assert TextToImage.from_pretrained(folder, variant="fp16").networks["unet"].differences == []


def test_a_limit_that_the_folder_does_not_say_is_the_encoders(sd, copy):
    folder = copy(sd)
    changed(folder, "tokenizer/tokenizer_config.json", model_max_length=10**30)
    assert prompt_encoder(folder).encode(["a cat"])["text"].shape == (1, LENGTH, 8)
    changed(folder, "tokenizer/tokenizer_config.json", model_max_length=LENGTH + 1)
    with pytest.raises(ValueError, match=f"tokenizer makes {LENGTH + 1} tokens of a prompt, and its encoder takes"):
        TextToImage.from_pretrained(folder)


HOSTILE = {
    "a list": ("[]", "must hold a JSON object, got a list"),
    "deep": ("[" * 10**5, "nested too deeply"),
    "no class": ("{}", "_class_name must name a class of diffusers, got None"),
    "a class of its own": ('{"_class_name": ["pipeline", "Mine"]}', r"got \['pipeline', 'Mine'\]"),
    "another class": ('{"_class_name": "FluxPipeline"}', "is a FluxPipeline; there are StableDiffusionPipeline"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_indices_are_refused(case, sd, copy):
    text, message = HOSTILE[case]
    folder = copy(sd)
    (folder / "model_index.json").write_text(text)
    for read in (TextToImage.from_pretrained, prompt_encoder):
        with pytest.raises(ValueError, match=message) as refused:
            read(folder)
        assert str(folder) in str(refused.value)


@pytest.mark.parametrize("part", ["unet", "scheduler"])
@pytest.mark.parametrize("value", [["diffusers", 3], ["diffusers", ["a"]], ["diffusers", "Other"], "x", None, {}])
def test_parts_that_are_none_are_named(part, value, sd, copy):
    folder = copy(sd)
    changed(folder, "model_index.json", **{part: value})
    with pytest.raises(ValueError, match=part if part == "unet" else f"{part}|Other"):
        TextToImage.from_pretrained(folder)


def test_the_parts_of_a_pipeline_of_classes_are_checked(sd, copy):
    folder = copy(sd)
    put(
        folder / "model_index.json",
        {
            "_class_name": "DDPMPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "scheduler": ["diffusers", SCHEDULER["_class_name"]],
        },
    )
    with pytest.raises(ValueError, match="unet is a UNet2DConditionModel, which DDPMPipeline has not"):
        ClassToImage.from_pretrained(folder)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not beside this checkout")
def test_every_published_pipeline_of_a_known_class_opens_or_says_what_is_missing():
    spec = importlib.util.spec_from_file_location("published", ROOT / "experiments" / "published.py")
    assert spec is not None and spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    rows = [line.split(" | ") for line in page.pipelines(PUBLISHED).splitlines() if line.startswith("| ")][2:]
    opened = [row for row in rows if row[2].startswith(("accepted", "(not among the files"))]
    assert len(opened) > 60
    reasons = ("takes 9 channels", "takes 8 channels", "takes 7 channels", "parts missing", "is not JSON")
    reasons += ("_class_name must name", "vae is a AutoencoderKLFlux2")
    assert not [row for row in rows if row not in opened and not any(reason in row[2] for reason in reasons)]
