"""Small real vocabularies, learnt from a few sentences, in the folders of CLIP's and T5's tokenizers."""

import json
import random
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

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
def clip_vocabulary():
    """(tokens, merges), as CLIP's own is made: bytes, bytes that end a word, merges, and two special tokens."""
    learnt = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learnt.normalizer = normalizers.Lowercase()
    words = pre_tokenizers.Split(Regex(r"'s|'re|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True)
    learnt.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learnt.train_from_iterator(SENTENCES, trainer)
    merges = [tuple(pair) for pair in json.loads(learnt.to_str())["model"]["merges"]]
    return [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges), BEGIN, END], merges


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
    backend = Tokenizer(models.Unigram())
    split = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_special_tokens([AddedToken(f"<extra_id_{i}>", special=True) for i in range(4)])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 4}
    config |= {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(4)]}
    config |= {"model_max_length": limit, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
