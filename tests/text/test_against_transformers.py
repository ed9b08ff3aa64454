"""Tokens beside those of transformers' CLIPTokenizer and T5TokenizerFast, with the same files."""

import json

import numpy as np
import pytest

from jdiff.text import load_tokenizer
from tests.interop.peers import transformers
from tests.text.folders import BEGIN, END, STRINGS, clip_folder, drawn_strings, t5_folder

LIMIT = 300
ALL = STRINGS + drawn_strings(400)


def agree(kind, folder):
    theirs = kind.from_pretrained(folder)
    expected = theirs(ALL, padding="max_length", max_length=LIMIT, return_tensors="np")
    assert expected.input_ids.shape == (len(ALL), LIMIT)
    ours = load_tokenizer(folder, limit=LIMIT)(ALL)
    for text, one, two in zip(ALL, ours.ids, expected.input_ids, strict=True):
        assert one.tolist() == two.tolist(), text
    np.testing.assert_array_equal(ours.mask, expected.attention_mask)
    return theirs


@pytest.mark.parametrize("pad", [END, "!"])
def test_clip(pad, tmp_path):
    theirs = agree(transformers.CLIPTokenizer, clip_folder(tmp_path / "old", pad=pad))
    assert theirs.pad_token == pad
    theirs.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "vocab.json").exists()
    agree(transformers.CLIPTokenizer, tmp_path / "new")


def test_clip_with_tokens_of_its_own(tmp_path):
    """As textual inversion adds them."""
    folder = clip_folder(tmp_path)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    cat = {"content": "<cat-toy>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": True}
    decoder = {vocabulary[text]: {"content": text} | flags for text in (BEGIN, END)}
    decoder[len(vocabulary)] = cat | {"special": False}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
    text = "a photo of <cat-toy>s,<cat-toy>"
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)(text).input_ids
    ours = load_tokenizer(folder)([text])
    assert ours.ids[0][ours.mask[0]].tolist() == theirs
    assert theirs.count(len(vocabulary)) == 2
    (folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": len(vocabulary) + 5}))
    with pytest.raises(ValueError, match="do not have the ids"):
        load_tokenizer(folder)


def test_t5(tmp_path):
    agree(transformers.T5TokenizerFast, t5_folder(tmp_path))
