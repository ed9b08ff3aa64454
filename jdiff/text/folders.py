"""Tokenizers of CLIP and T5 from a folder in the layout of diffusers and transformers.

- CLIP (2103.00020): vocab.json and merges.txt, or tokenizer.json. Byte-pair encoding (1508.07909) of the UTF-8 bytes of
  the words of a lower-case text, where the last byte of a word carries "</w>".
- T5 (1910.10683): tokenizer.json. The most probable pieces under a unigram model (1804.10959).

tokenizer_config.json and special_tokens_map.json beside them say what begins, ends and pads a prompt, and its length.
Special tokens are found in the text as well. Stable Diffusion 2 and the second encoder of XL pad with "!", so that a
"!" in their prompts has the id of padding, in transformers as here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from jdiff.json_files import read_object
from jdiff.text.files import checked_tokenizer, read_merges, read_vocabulary
from jdiff.text.tokenizer import Tokenizer, built

WORD_END = "</w>"
# What a word is to CLIP: its two special tokens, English endings, letters, one digit, or a run of anything else.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
CLIP |= {"pad_token": "<|endoftext|>"}
T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
LARGEST = 10**6  # what is more means "no limit" in tokenizer_config.json


def load_tokenizer(folder: str | Path, *, limit: int | None = None, usual: int | None = None) -> Tokenizer:
    """The tokenizer of a folder. `limit`: of tokens, with begin and end; the folder's model_max_length unless given,
    and `usual` where that says none.

    Raises ValueError for a tokenizer that is not CLIP's or T5's, a file that cannot be read, spiece.model alone, no
    limit, and a special token that is not in the vocabulary; FileNotFoundError for a folder without a tokenizer.
    """
    folder = Path(folder)
    settings = _settings(folder)
    _check_tokens(folder, settings)
    backend = _backend(folder, settings)
    backend.no_truncation()
    backend.no_padding()
    special = {key: settings.get(key) or token for key, token in _kind(folder, backend).items()}
    _add(folder, backend, settings, special)
    limit = _length(folder, settings, usual) if limit is None else limit
    vocabulary = backend.get_vocab()
    ids = {key: vocabulary[_text(token)] for key, token in special.items()}
    return Tokenizer(
        backend=backend, limit=int(limit), begin=ids.get("bos_token"), end=ids["eos_token"], pad=ids["pad_token"]
    )


def _length(folder: Path, settings: Mapping[str, Any], usual: int | None) -> int:
    """The limit of a folder that is given none."""
    length = settings.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1):
        raise ValueError(f"{folder}: model_max_length must be a number of tokens, got {length!r}")
    limit = usual if length is None or length > LARGEST else int(length)
    if limit is None:
        raise ValueError(f"limit: {folder} has no model_max_length; CLIP takes 77 tokens, T5 as many as it is given")
    return limit


def _backend(folder: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.exists():
        text = checked_tokenizer(whole)
        return built(f"{folder}: {whole.name}", lambda: tokenizers.Tokenizer.from_str(text))
    if vocabulary.exists() and merges.exists():
        words, pairs = read_vocabulary(vocabulary), read_merges(merges)
        unknown = _text(settings.get("unk_token") or CLIP["unk_token"])
        return built(f"{folder}: {vocabulary.name} and {merges.name}", lambda: _clip(words, pairs, unknown))
    if (folder / "spiece.model").exists():
        raise ValueError(
            f"{folder} holds spiece.model alone. Where transformers and sentencepiece are installed, this makes its "
            f"tokenizer.json: python -c \"from transformers import AutoTokenizer as A; A.from_pretrained('{folder}')."
            f"save_pretrained('{folder}')\""
        )
    raise FileNotFoundError(f"{folder} holds no tokenizer.json, and no vocab.json with merges.txt")


def _clip(vocabulary: Any, merges: Any, unknown: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
            fuse_unk=False,
            unk_token=unknown,
        )
    )
    blank = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), blank, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return backend


def _kind(folder: Path, backend: tokenizers.Tokenizer) -> dict[str, str]:
    """The special tokens of the kind of tokenizer that this is."""
    model = backend.model
    if isinstance(model, models.BPE) and model.end_of_word_suffix == WORD_END:
        return dict(CLIP)
    if isinstance(model, models.Unigram):
        return dict(T5)
    name = type(model).__name__
    raise ValueError(f"{folder} holds a {name} tokenizer, not CLIP's (BPE with {WORD_END!r}) or T5's (Unigram)")


def _settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says; where it lists no tokens, as in older folders, special_tokens_map.json says more
    and is right."""
    settings = _json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings |= _json(folder / "special_tokens_map.json")
    return settings


def _json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _check_tokens(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a token that is neither a string nor an object with its content."""
    tokens = {name: settings[name] for name in CLIP if settings.get(name)}
    listed = settings.get("added_tokens_decoder", {})
    if not isinstance(listed, Mapping) or not all(key.isdecimal() and len(key) < 10 for key in listed):
        raise ValueError(f"{folder}: added_tokens_decoder must be an object from ids to tokens")
    tokens |= {f"added_tokens_decoder {i}": token for i, token in listed.items()}
    for name, token in tokens.items():
        flags = {key: token[key] for key in FLAGS if key in token} if isinstance(token, Mapping) else {}
        text = token.get("content") if isinstance(token, Mapping) else token
        if not isinstance(text, str) or not text or not all(isinstance(flag, bool) for flag in flags.values()):
            raise ValueError(f"{folder}: {name} must be a string, or an object with its content, got {token!r}")


def _add(folder: Path, backend: tokenizers.Tokenizer, settings: Mapping[str, Any], special: Mapping[str, Any]) -> None:
    """Makes the backend find special tokens, and tokens that were added to the vocabulary, in the text."""
    names = {_text(value) for value in special.values()}
    listed = {int(i): _added(token, names) for i, token in settings.get("added_tokens_decoder", {}).items()}
    for text, i in _json(folder / "added_tokens.json").items():
        if not isinstance(i, int) or not text:
            raise ValueError(f"{folder / 'added_tokens.json'} must have ids of tokens, got {text!r}: {i!r}")
        listed[int(i)] = AddedToken(text, special=text in names, normalized=text not in names)
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    known |= {token.content for token in listed.values()}
    add = lambda tokens: built(f"{folder}: its added tokens", lambda: backend.add_tokens(tokens))
    add([listed[i] for i in sorted(listed)])
    absent = [f"{key} {_text(token)!r}" for key, token in special.items() if backend.token_to_id(_text(token)) is None]
    if absent:
        raise ValueError(f"{folder}: not in the vocabulary: {', '.join(absent)}")
    add([_added(value, names) for value in special.values() if _text(value) not in known])
    wrong = [f"{token.content!r} {i}" for i, token in listed.items() if backend.token_to_id(token.content) != i]
    if wrong:
        raise ValueError(f"{folder}: added tokens do not have the ids that they should: {', '.join(wrong)}")


def _added(token: str | Mapping[str, Any], special: set) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    flags = {key: token[key] for key in FLAGS if key in token}
    flags.pop("special", None)
    return AddedToken(token["content"], special=token.get("special", False) or token["content"] in special, **flags)


def _text(token: str | Mapping[str, Any]) -> str:
    return token["content"] if isinstance(token, Mapping) else token
