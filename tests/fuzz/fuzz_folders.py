"""The files of other people's folders, changed at random: configs of networks, indices, tokenizers, headers of weights.

Each is read, or refused in words that name the folder. A config that is accepted comes back the same, and what it
describes is built, or refused, beside weights of as many tensors as it may have.
"""

import collections
import json
import random
import struct
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jdiff.interop import Entry, Tensors, open_tensors, read_config
from jdiff.interop.configs import write_config
from jdiff.interop.pretrained import fitting
from jdiff.models import CONFIGS
from jdiff.pipelines.folder import read_index
from jdiff.text import load_tokenizer
from tests.fuzz.fuzz_configs import refusal
from tests.fuzz.mutations import encoded, mutated, spoiled
from tests.interop.encoders import SD15_TEXT, T5_XXL, VIT_L
from tests.interop.test_published import DDPM, DIT, SD3, SD15, SDXL
from tests.pipelines.test_folders import XL_INDEX
from tests.text.folders import clip_folder, t5_folder

NETWORKS = (SD15, SDXL, SD3, DIT, DDPM, SD15_TEXT, T5_XXL, VIT_L)
HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [24, 28]},
}
SHARDS = {"metadata": {}, "weight_map": {"a": "m.safetensors", "b": "m.safetensors"}}
_BUILT_EVERY = 40
MANY = Tensors(entries={str(i): Entry("F32", ()) for i in range(2000)}, read=lambda name: None)  # pyright: ignore


def _network(path: Path, built: bool) -> None:
    expected = next(config for config in CONFIGS if config.published == "CLIPTextModel")
    config = read_config(path, expected if b"CLIPModel" in path.read_bytes() else None)
    write_config(again := path.with_name("again.json"), config)
    assert read_config(again) == config, "another config after it was written"
    if built:
        fitting(config, MANY, str(path.parent))


def _weights(folder: Path) -> None:
    with open_tensors(folder) as tensors:
        for name in tensors.entries:
            tensors.read(name)


def _changed(value: Mapping[str, Any], rng: random.Random) -> bytes:
    whole = json.dumps(value).encode()
    return spoiled(whole, rng) if rng.random() < 0.3 else encoded(mutated(value, rng))


class Files:
    """Folders with good files, made once."""

    def __init__(self, folder: Path):
        self.folder = folder
        clip_folder(folder / "clip")
        t5_folder(folder / "t5")
        self.tokenizers = [
            path for kind in ("clip", "t5") for path in sorted((folder / kind).iterdir()) if path.suffix == ".json"
        ]

    def run_case(self, rng: random.Random, built: bool) -> str:
        kind = rng.choice(("network", "index", "tokenizer", "header", "shards"))
        return f"{kind} {getattr(self, kind)(rng, built)}"

    def network(self, rng: random.Random, built: bool) -> str:
        (path := self.folder / "config.json").write_bytes(data := _changed(rng.choice(NETWORKS), rng))
        return self._refusal(lambda: _network(path, built), data)

    def index(self, rng: random.Random, built: bool) -> str:
        (self.folder / "model_index.json").write_bytes(data := _changed(XL_INDEX, rng))
        return self._refusal(lambda: read_index(self.folder), data)

    def tokenizer(self, rng: random.Random, built: bool) -> str:
        path = rng.choice(self.tokenizers)
        whole = path.read_bytes()
        path.write_bytes(data := _changed(json.loads(whole), rng))
        try:
            return self._refusal(
                lambda: load_tokenizer(path.parent, usual=77)(["a (red:1.2) cube!"], long="chunk"), data
            )
        finally:
            path.write_bytes(whole)

    def header(self, rng: random.Random, built: bool) -> str:
        text = _changed(HEADER, rng)
        length = len(text) if rng.random() < 0.9 else rng.randrange(2**63)
        folder = self.folder / "header"
        folder.mkdir(exist_ok=True)
        data = struct.pack("<Q", length) + text + bytes(28)
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(data)
        return self._refusal(lambda: _weights(folder), data)

    def shards(self, rng: random.Random, built: bool) -> str:
        folder = self.folder / "shards"
        folder.mkdir(exist_ok=True)
        text = json.dumps(HEADER).encode()
        (folder / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(28))
        data = _changed(SHARDS, rng)
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_bytes(data)
        return self._refusal(lambda: _weights(folder), data)

    def _refusal(self, act: Callable[[], Any], data: bytes) -> str:
        return refusal(act, repr(data[:3000]))[0]


def run(seconds: float, seed: int) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    end, number = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as place:
        files = Files(Path(place))
        while time.monotonic() < end:
            rng = random.Random(f"{seed} {number}")
            try:
                counts[files.run_case(rng, number % _BUILT_EVERY == 0)] += 1
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, case {number}: {error}") from error
            number += 1
    return dict(counts)
