"""Folders of tokenizers that anyone may have written: each file wrong in every way, refused by name and at once."""

import json
import os
import random
import shutil
import time

import pytest

from jdiff.text import load_tokenizer
from tests.text.folders import clip_folder, t5_folder

FILES = {"clip": ["vocab.json", "merges.txt", "tokenizer_config.json"], "t5": ["tokenizer.json"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("tokenizers")
    clip_folder(base / "clip")
    t5_folder(base / "t5")
    return base


@pytest.fixture
def copy(folders, tmp_path):
    made = []

    def copied(kind):
        made.append(shutil.copytree(folders / kind, tmp_path / f"{kind} {len(made)}"))
        return made[-1]

    return copied


def changed(folder, name, **fields):
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def opened(folder):
    """Raises ValueError or FileNotFoundError, or tokenizes."""
    start = time.monotonic()
    try:
        return load_tokenizer(folder)(["a red cube (aaaa) !"], long="chunk")
    finally:
        assert time.monotonic() - start < 10


NUMBERS = ("77", -1, 0, 0.5, [], {}, True, [1], float("nan"))
TOKENS = (5, -1, 1.5, [1], True, {"content": 5}, {"content": ""}, {"content": "x", "lstrip": "a"}, {"lstrip": True})
ADDED = ([], 3, {"a": {"content": "x"}}, {"-1": {"content": "x"}}, {"5": None}, {"5": 3}, {"9" * 20: {"content": "x"}})


@pytest.mark.parametrize("kind", FILES)
def test_settings_of_a_wrong_type_are_named(kind, copy):
    for name, values in (("model_max_length", NUMBERS), ("eos_token", TOKENS), ("pad_token", TOKENS)):
        for value in values:
            changed(folder := copy(kind), "tokenizer_config.json", **{name: value})
            (folder / "special_tokens_map.json").unlink(missing_ok=True)
            with pytest.raises(ValueError, match=name) as refused:
                opened(folder)
            assert str(folder) in str(refused.value)
    for value in ADDED:
        if value:
            changed(folder := copy(kind), "tokenizer_config.json", added_tokens_decoder=value)
            with pytest.raises(ValueError, match="added_tokens_decoder"):
                opened(folder)
    for value in ({"x": -1}, {"x": "1"}, {"x": 10**20}, {"": 5}):
        changed(folder := copy(kind), "added_tokens.json", **value)
        with pytest.raises(ValueError, match="added"):
            opened(folder)


CONTENTS = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: os.symlink("/dev/zero", path),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "a list": lambda path: path.write_text("[]"),
    "an empty object": lambda path: path.write_text("{}"),
    "deep": lambda path: path.write_text("[" * 10**5),
    "empty": lambda path: path.write_bytes(b""),
    "null": lambda path: path.write_text("null"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_files_that_hold_something_else_are_refused(content, copy):
    for kind, name in (("clip", "vocab.json"), ("clip", "merges.txt"), ("t5", "tokenizer.json")):
        (path := copy(kind) / name).unlink()
        CONTENTS[content](path)
        if (name, content) == ("merges.txt", "empty"):
            continue  # no merges are merges
        with pytest.raises(ValueError, match=str(path.parent)):
            opened(path.parent)
    path = copy("clip") / "tokenizer_config.json"
    path.unlink()
    CONTENTS[content](path)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json|model_max_length"):
        opened(path.parent)


def replacing(count, content, pattern=None):
    step = {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}
    return {"normalizer": {"type": "Sequence", "normalizers": [step] * count}}


STEPS = {
    "many": (replacing(60, "b"), "its normalizer has 61 steps"),
    "doubling": (replacing(12, "aa"), "its normalizer makes texts 4096 times as long"),
    "long": (replacing(1, "a" * 10**6), "its normalizer makes texts 1000000 times as long"),
    "backtracking": (replacing(1, "b", {"Regex": "(a+)+$"}), "a pattern that may take forever"),
    "charsmap": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "precompiled_charsmap"),
    "charsmap's size": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}}, "precomp"),
    "unknown": ({"normalizer": {"type": "Magic"}}, "cannot be read"),
    "no object": ({"normalizer": 5}, "cannot be read"),
    "ids": ({"added_tokens": [{"id": -1, "content": "x"}]}, "cannot be read"),
    "no model": ({"model": None}, "its model has no vocabulary"),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps_that_take_forever_or_stop_the_library_are_refused(case, copy, capfd):
    fields, message = STEPS[case]
    changed(folder := copy("t5"), "tokenizer.json", **fields)
    with pytest.raises(ValueError, match=message):
        opened(folder)
    assert "panicked" not in capfd.readouterr().err


def test_what_a_text_cannot_be_made_of_is_said_of_the_prompt(copy):
    folder = copy("t5")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    changed(folder, "tokenizer.json", model=model | {"unk_id": None})
    with pytest.raises(ValueError, match=r"prompts\[0\] cannot be read: .*unk_id"):
        opened(folder)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_are_refused_or_read(kind, copy):
    rng, folder = random.Random(0), copy(kind)
    for _ in range(100):
        path = folder / rng.choice(FILES[kind])
        whole = path.read_bytes()
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            opened(folder)
        except (ValueError, FileNotFoundError) as error:
            assert str(folder) in str(error) or "prompts[0]" in str(error)
        path.write_bytes(whole)


def test_texts_of_every_kind_are_read(copy):
    """Empty ones, other scripts, control characters, very long ones."""
    for kind in FILES:
        tokenizer = load_tokenizer(copy(kind))
        prompts = ["", " \n\t", "東京 мир عربى", "e\u0301\u200b\u202e", "\0\x7f", "😀👩‍👩‍👧", "a" * 10**4]
        tokens = tokenizer(prompts, long="chunk")
        assert tokens.ids.shape[0] == len(prompts) and (tokens.ids >= 0).all()
