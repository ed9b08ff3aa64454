"""Framing, padding, length and weights of tokens, and folders that are refused."""

import json
import random
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from jdiff.text import load_tokenizer
from tests.text.folders import BEGIN, END, SENTENCES, clip_folder, clip_vocabulary, drawn_strings, t5_folder

PROMPT = "a photograph of an astronaut riding a horse on mars"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {"clip": clip_folder(folder / "clip"), "t5": t5_folder(folder / "t5")}


@pytest.fixture(params=["clip", "t5"])
def folder(request, folders):
    return folders[request.param]


def inner(tokenizer, prompt):
    """The ids of a prompt alone."""
    return tokenizer.backend.encode(prompt, add_special_tokens=False).ids


def test_prompts_are_framed_and_padded(folders):
    vocabulary, _ = clip_vocabulary()
    ids = {text: i for i, text in enumerate(vocabulary)}
    tokens = load_tokenizer(folders["clip"], limit=5)(["a", ""])
    end = ids[END]
    assert tokens.ids.tolist() == [[ids[BEGIN], ids["a</w>"], end, end, end], [ids[BEGIN], end, end, end, end]]
    assert tokens.mask.tolist() == [[True, True, True, False, False], [True, True, False, False, False]]
    assert tokens.ids.dtype == np.int32 and tokens.weights.dtype == np.float32 and (tokens.weights == 1).all()
    tokens = load_tokenizer(folders["t5"], limit=3)([""])
    assert tokens.ids.tolist() == [[1, 0, 0]] and tokens.mask.tolist() == [[True, False, False]]


def test_the_limit_is_that_of_the_folder_unless_given(folders):
    assert load_tokenizer(folders["clip"])([PROMPT]).ids.shape == (1, 77)
    assert load_tokenizer(folders["t5"])([PROMPT]).ids.shape == (1, 512)
    assert load_tokenizer(folders["t5"], limit=256)([PROMPT, ""]).ids.shape == (2, 256)
    assert load_tokenizer(folders["t5"])([]).ids.shape == (0, 512)


def test_a_prompt_that_is_too_long_is_refused(folder):
    """And one that just fits is not."""
    tokenizer = load_tokenizer(folder)
    count, frame = len(inner(tokenizer, PROMPT)), tokenizer.limit - tokenizer.room
    fitting = load_tokenizer(folder, limit=count + frame)([PROMPT])
    assert fitting.mask.all()
    with pytest.raises(ValueError) as error:
        load_tokenizer(folder, limit=count + frame - 1)(["short", PROMPT])
    for part in ("prompts[1]", f"{count} tokens", f"takes {count - 1}", f"({count + frame - 1} ", PROMPT, '"chunk"'):
        assert part in str(error.value)


@pytest.mark.parametrize("limit", [4, 7, 16, 77])
def test_pieces_hold_the_prompt(limit, folder):
    """All of it in order, each piece with its own frame."""
    tokenizer = load_tokenizer(folder, limit=limit)
    prompts = ["", *SENTENCES, *drawn_strings(20, seed=1)]
    tokens = tokenizer(prompts, long="chunk")
    frame = [] if tokenizer.begin is None else [tokenizer.begin]
    counts = []
    for prompt, ids, mask in zip(prompts, tokens.ids, tokens.mask, strict=True):
        pieces = [piece[seen].tolist() for piece, seen in zip(ids, mask, strict=True) if seen.any()]
        assert all(piece[: len(frame)] == frame and piece[-1] == tokenizer.end for piece in pieces)
        assert [i for piece in pieces for i in piece[len(frame) : -1]] == inner(tokenizer, prompt)
        assert all(len(piece) == limit for piece in pieces[:-1])
        counts.append(len(pieces))
    assert tokens.ids.shape == (len(prompts), max(counts), limit) and min(counts) == 1
    empty = tokens.ids[~tokens.mask.any(-1)]
    assert (empty == tokenizer([""]).ids).all()


def test_pieces_of_a_short_prompt_are_the_prompt(folder):
    tokenizer = load_tokenizer(folder)
    whole, pieces = tokenizer([PROMPT]), tokenizer([PROMPT], long="chunk")
    assert all(np.array_equal(one[:, None], two) for one, two in zip(whole, pieces, strict=True))


def test_truncation_in_a_file_cuts_nothing(folders, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["t5"] / name, tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=40)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert all(map(np.array_equal, load_tokenizer(tmp_path)([PROMPT]), load_tokenizer(folders["t5"])([PROMPT])))


@pytest.mark.parametrize("seed", range(5))
def test_each_token_has_the_weight_of_its_word(seed, folder):
    """Words in and out of brackets, tokenized one by one, beside the whole prompt; tokens are those of the words."""
    rng, tokenizer = random.Random(seed), load_tokenizer(folder, limit=400)
    words = [rng.choice(" ".join(SENTENCES).split()) for _ in range(30)]
    chosen = [rng.choice([1.0, 1.3, 0.5, 2.0]) for _ in words]
    written = [word if weight == 1 else f"({word}:{weight})" for word, weight in zip(words, chosen, strict=True)]
    tokens = tokenizer([" ".join(written)], weights=True)
    plain = tokenizer([" ".join(words)])
    assert np.array_equal(tokens.ids, plain.ids) and np.array_equal(tokens.mask, plain.mask)
    each = [weight for word, weight in zip(words, chosen, strict=True) for _ in inner(tokenizer, word)]
    start = 0 if tokenizer.begin is None else 1
    np.testing.assert_allclose(tokens.weights[0, start : start + len(each)], each, rtol=1e-6)
    assert (tokens.weights[0, :start] == 1).all() and (tokens.weights[0, start + len(each) :] == 1).all()


def test_a_token_of_two_weights_has_that_of_its_last_character(folder):
    tokenizer = load_tokenizer(folder)
    words = [token.removesuffix("</w>").removeprefix("▁") for token in tokenizer.backend.get_vocab()]
    words = [word for word in words if len(word) > 2 and word.isalpha() and len(inner(tokenizer, word)) == 1]
    assert words
    for word in words:
        first, last = tokenizer([f"{word[0]}({word[1:]}:1.5)", f"({word[:-1]}:1.5){word[-1]}"], weights=True).weights
        assert (first != 1).sum() == 1 and first.max() == 1.5 and (last == 1).all(), word


def test_weights_go_with_their_tokens_into_pieces(folder):
    one = load_tokenizer(folder, limit=400)([f"a ({PROMPT}:1.5) b"], weights=True)
    tokenizer = load_tokenizer(folder, limit=6)
    many = tokenizer([f"a ({PROMPT}:1.5) b"], weights=True, long="chunk")
    special = [tokenizer.begin, tokenizer.end]
    pairs = [
        [
            (i, w)
            for i, w, m in zip(t.ids.ravel(), t.weights.ravel(), t.mask.ravel(), strict=True)
            if m and i not in special
        ]
        for t in (one, many)
    ]
    assert pairs[0] == pairs[1] and {weight for _, weight in pairs[0]} == {1.0, 1.5}


def test_brackets_are_text_unless_weights_are_asked_for(folder):
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer(["(red:1.3"])
    assert tokens.ids[0][tokens.mask[0]].tolist()[:-1][-len(inner(tokenizer, "(red:1.3")) :] == inner(
        tokenizer, "(red:1.3"
    )
    with pytest.raises(ValueError, match="is not closed"):
        tokenizer(["(red:1.3"], weights=True)


def test_wrong_arguments_are_refused(folder):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match="prompts: 'a cat' is one string"):
        tokenizer("a cat")
    with pytest.raises(ValueError, match="long: 'cut' is not one of refuse, chunk"):
        tokenizer(["a cat"], long="cut")
    for wrong in (None, b"a cat", "a \ud83d"):
        with pytest.raises(ValueError, match=r"prompts\[1\]: .* is not a string"):
            tokenizer(["a cat", wrong])
    with pytest.raises(ValueError, match="limit: 1 leaves no place"):
        load_tokenizer(folder, limit=1)


def test_a_folder_that_says_no_limit_wants_one(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    with pytest.raises(ValueError, match=r"limit: .* has no model_max_length"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, limit=77)([PROMPT]).ids.shape == (1, 77)


def test_folders_without_a_tokenizer_that_can_be_read_are_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer.json, and no vocab.json with merges.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"spiece.model alone.*save_pretrained"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read"):
        load_tokenizer(tmp_path)
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"holds a BPE tokenizer, not CLIP's"):
        load_tokenizer(tmp_path)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"holds a WordLevel tokenizer"):
        load_tokenizer(tmp_path)


def test_settings_that_cannot_be_right_are_refused(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|pad|>"}))
    with pytest.raises(ValueError, match=r"not in the vocabulary: pad_token '<\|pad\|>'"):
        load_tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text("[1")
    with pytest.raises(ValueError, match=r"special_tokens_map.json is not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "merges.txt").write_text("#version: 0.2\nnot a merge\n")
    with pytest.raises(ValueError, match=r"merges.txt must have two tokens a line, got 'not a merge'"):
        load_tokenizer(tmp_path)


def test_a_break_ends_a_piece(folder):
    tokenizer = load_tokenizer(folder, limit=9)
    tokens = tokenizer(["red BREAK (blue:1.5) BREAK", "green"], long="chunk", weights=True)
    assert tokens.ids.shape == (2, 3, 9)
    for piece, word in zip(tokens.ids[0], ("red", "blue", ""), strict=True):
        assert (piece == tokenizer([word]).ids[0]).all()
    assert tokens.weights[0].max(-1).tolist() == [1, 1.5, 1]
    assert tokens.mask.any(-1).tolist() == [[True, True, True], [True, False, False]]
    with pytest.raises(ValueError, match=r"prompts\[0\]: BREAK begins another piece"):
        tokenizer(["red BREAK blue"], weights=True)
