"""Text to image from one original file, as its user sees it; tests/interop holds the comparison with diffusers."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from jdiff import TextToImage
from jdiff.prediction import Eps, V
from tests.interop.originals import CLIP_1, CLIP_G, CLIP_L, NETWORK, clip, drawn, tensors_of, under
from tests.text.folders import clip_folder, clip_vocabulary

ASK = {"seeds": [3], "steps": 3, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("tokenizer"), limit=16)


def saved(path, tensors):
    save_file(tensors, path)
    return path


@pytest.mark.slow
def test_a_file_becomes_a_folder_that_draws_the_same_pictures(tokenizer, tmp_path):
    encoder = drawn(under(CLIP_1, clip(width=128, layers=2, vocabulary=len(clip_vocabulary()[0]))))
    path = saved(tmp_path / "1.safetensors", tensors_of("1") | encoder)
    pipeline = TextToImage.from_single_file(path, tokenizer=tokenizer)
    assert pipeline.schedule.parameterization == Eps()
    images = pipeline(["a cat"], **ASK)
    assert images.shape == (1, 16, 16, 3)
    assert images.std() > 0.01
    pipeline.save_pretrained(tmp_path / "folder")
    again = TextToImage.from_pretrained(tmp_path / "folder")
    np.testing.assert_array_equal(again(["a cat"], **ASK), images)
    again.save_pretrained(tmp_path / "copy")
    np.testing.assert_array_equal(TextToImage.from_pretrained(tmp_path / "copy")(["a cat"], **ASK), images)


@pytest.mark.parametrize(("given", "expected", "size"), [(None, V(), 96), ("epsilon", Eps(), 64)])
def test_what_the_second_predicts_is_asked(tokenizer, tmp_path, given, expected, size):
    path = saved(tmp_path / "2.safetensors", tensors_of("2"))
    pipeline = TextToImage.from_single_file(path, tokenizer=tokenizer, prediction_type=given)
    assert pipeline.schedule.parameterization == expected
    assert pipeline.networks["unet"].config.sample_size == size


WIDE = {f"{NETWORK}input_blocks.0.0.weight": np.zeros((32, 9, 3, 3), np.float32)}
REFUSED = {
    "prediction": ("1", {"prediction_type": "flow"}, "prediction_type=.flow. is not supported"),
    "velocity": ("3", {"prediction_type": "epsilon"}, "Stable Diffusion 3, which predicts a velocity, not 'epsilon'"),
    "tokenizer": ("XL", {}, "takes tokenizer, tokenizer_2; given are tokenizer$"),
    "too many": ("1", {"tokenizer_2": "folder"}, "takes tokenizer; given are tokenizer, tokenizer_2"),
    "T5's": ("3", {"tokenizer_2": "folder"}, "takes tokenizer, tokenizer_2, tokenizer_3; given"),
    "inpainting": ("inpainting", {}, "takes 9 channels where latents have 4"),
    "no encoders": ("3 alone", {}, "holds no text_encoder and no text_encoder_2: no prompt can be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_together_is_refused_before_networks_are_read(case, tokenizer, tmp_path):
    family, options, message = REFUSED[case]
    tensors = tensors_of({"inpainting": "1", "3 alone": "3"}.get(family, family))
    tensors |= WIDE if family == "inpainting" else {}
    if family == "3 alone":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith((CLIP_L, CLIP_G))}
    path = saved(tmp_path / "file.safetensors", tensors)
    with pytest.raises(ValueError, match=message) as caught:
        TextToImage.from_single_file(path, tokenizer=tokenizer, **options)
    assert str(path) in str(caught.value)
