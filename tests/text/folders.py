"""Small vocabularies, learnt from a few sentences, in the folders of CLIP's and T5's tokenizers."""

import json
import math
import random
from collections import Counter
from functools import cache
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

SENTENCES = [
    "a photograph of an astronaut riding a horse on mars",
    "the painter's cat, 4k, highly detailed, sharp focus; trending!",
    "we're sure it's an oil painting of the sea at night - isn't it?",
    "une photo d'été, naïve café, Ærøskøbing; 東京の夜景 and größe",
    "red cube blue ball green house old tree tiny mouse great mountain",
]
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
STRINGS = [
    "",
    " ",
    "a photo of a cat",
    "A PHOTO Of A Cat",
    "  two  spaces\tand\na newline ",
    "it's we're they'll I'd you've 'quoted'",
    "hello!!! what?! (well) [ok] {so} a-b_c/d\\e #1 @2 $3.50 50%",
    "1234567890 v1.5 3d 4k",
    "&amp; &lt;b&gt; <b>bold</b> &#39; &nbsp;",
    "café naïve Ünïcödé cafe\u0301 İstanbul ß ﬁne",
    "東京の夜景、きれい。 Привет мир مرحبا नमस्ते",
    "😀👩‍🚀🏳️‍🌈 👍🏽 a🐱b",
    f"{END} in the {BEGIN} text{END}",
    "<|ENDOFTEXT|> <|endoftext| >",
    "zero\u200bwidth\u00a0space\u2003em",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "a, b, c: d; e. f! g",
    "</w> </s> <pad> <unk> ▁x",
]


def drawn_strings(count, seed=0):
    """Strings of characters of all kinds, and of words."""
    rng = random.Random(seed)
    letters = "abcdeghinorstuABCÉéßİ東京नمر😀🐱👍🏽\u200d\u0301 \t'!?.,:;()[]{}<>|/\\-_#&@0123456789"
    words = " ".join(SENTENCES).split()
    return [
        "".join(
            rng.choice(letters) if rng.random() < 0.7 else f" {rng.choice(words)}" for _ in range(rng.randint(1, 20))
        )
        for _ in range(count)
    ]


@cache
def clip_vocabulary(count=150):
    """(tokens, merges), as CLIP's own is made: bytes, bytes that end a word, merges, and two special tokens.

    Each merge is the most frequent pair; the trainers of the package draw among equals, and do not repeat."""
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [in_bytes.pre_tokenize_str(word)[0][0] for word in " ".join(SENTENCES).lower().split()]
    words = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    for _ in range(count):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        words = [merged(word, best) for word in words]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges), BEGIN, END], merges


def merged(word, pair):
    """The parts of a word with each such pair made one."""
    parts = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def t5_vocabulary():
    """(piece, log of its frequency): all parts of words that occur twice, and single letters."""
    words = ["▁" + word for word in " ".join(SENTENCES).split()]
    parts = Counter(
        word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, min(len(word), i + 8) + 1)
    )
    total = sum(parts.values())
    kept = [(part, math.log(n / total)) for part, n in sorted(parts.items()) if n > 1 or len(part) == 1]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *kept]


def token(content):
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def clip_folder(folder, *, pad=END, limit=77):
    """A folder as that of Stable Diffusion 1.5, or 2 with pad="!": tokenizer_config.json says the usual padding."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps({text: i for i, text in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": token(BEGIN), "eos_token": token(END), "unk_token": token(END)}
    config = {key: {"__type": "AddedToken", **value} for key, value in special.items()}
    config |= {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": limit}
    config |= {"pad_token": END, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": pad}))
    return folder


def t5_folder(folder, *, limit=512):
    """A folder as that of T5's tokenizer, with a vocabulary of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer(models.Unigram(t5_vocabulary(), unk_id=2, byte_fallback=False))
    split = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(4))]
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 4}
    config |= {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(4)]}
    config |= {"model_max_length": limit, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
