"""The oracle, in int64 arithmetic."""

from typing import TypeVar

import torch
from torch import Tensor

DEVICE = "any"
PRIORITY = 0

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF

Word = TypeVar("Word", int, Tensor)


def _multiply(a: int, b: Word) -> tuple[Word, Word]:
    """High and low words of a 32 x 32 bit product, without leaving int64."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)  # each below 2^48
    total = low + ((high & 0xFFFF) << 16)
    return (high >> 16) + (total >> 32), total & MASK


def rounds(c0: Word, c1: Word, c2: Word, c3: Word, seed: int) -> tuple[Word, Word, Word, Word]:
    """Ten rounds over the words of a counter, integers in [0, 2^32) or int64 tensors of them."""
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(10):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def philox(counter: Tensor, seed: int) -> Tensor:
    """Ten rounds over counters int64 [..., 4] with words in [0, 2^32); the same shape back."""
    c0, c1, c2, c3 = counter.unbind(-1)
    return torch.stack(rounds(c0, c1, c2, c3, seed), -1)


def random_bits(sample_ids: Tensor, step: Tensor, seed: int, stream: int, count: int) -> Tensor:
    """Random words; see the package."""
    blocks = torch.arange(-(-count // 4), device=sample_ids.device)
    c0, c1 = torch.broadcast_tensors(blocks, (sample_ids & MASK)[:, None])
    c2 = (step & MASK).expand_as(c0)
    c3 = torch.full_like(c0, stream & MASK)
    words = philox(torch.stack((c0, c1, c2, c3), -1), seed)
    return words.flatten(1)[:, :count]
