"""Discrete visual tokens: codebooks that are fitted on images, saved, and predicted by BEiT."""

from sslfast.tokenizers.files import as_tokenizer, load_tokenizer, tokenizer_bytes
from sslfast.tokenizers.patch import Fit, PatchTokenizer, TokenizerSpec

__all__ = [
    "Fit",
    "PatchTokenizer",
    "TokenizerSpec",
    "as_tokenizer",
    "load_tokenizer",
    "tokenizer_bytes",
]
