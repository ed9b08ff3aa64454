"""Prompts as tokens with weights. The only folder that imports tokenizers.

tokenizer = load_tokenizer("stable-diffusion/tokenizer")
ids, mask, weights = tokenizer(["a (red:1.3) cube"], weights=True)
embeddings = emphasized(encode(ids), weights)
"""

from jdiff.text.folders import load_tokenizer
from jdiff.text.tokenizer import Tokenizer, Tokens
from jdiff.text.weights import Segment, emphasized, parse

__all__ = ["Segment", "Tokenizer", "Tokens", "emphasized", "load_tokenizer", "parse"]
