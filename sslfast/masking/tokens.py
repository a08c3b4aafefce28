"""Tokens of a text: BERT's masked language model."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslfast._arguments import NonNegativeInt, Part, PositiveInt, Probability, checked
from sslfast.kernels.patch_mask.op import smallest_keys
from sslfast.masking._common import TOKEN, Stream, below, fixed_point, source


class TokenMask(NamedTuple):
    """Corrupted tokens and what to predict.

    Attributes:
        tokens: int64 [B, L], the model's input.
        labels: int64 [B, L], the original token where one is to be predicted, else -100, which
            ``torch.nn.functional.cross_entropy`` leaves out.
        mask: bool [B, L], true where a token is to be predicted.
    """

    tokens: Tensor
    labels: Tensor
    mask: Tensor


@checked
def token_mask(
    tokens: Tensor,
    vocab_size: PositiveInt,
    mask_id: NonNegativeInt,
    mask_ratio: Part = 0.15,
    *,
    special_ids: Sequence[NonNegativeInt] = (),
    special: Tensor | None = None,
    replace: tuple[Probability, Probability] = (0.8, 0.1),
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    stream: Stream = 0,
) -> TokenMask:
    """Choose tokens to predict and corrupt them 80/10/10 (BERT).

    Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.1: of a row's n tokens that are
    not special round(n * mask_ratio) are chosen, at least one; each becomes the mask token with
    probability 0.8, a random token with 0.1, and stays with 0.1. Random tokens are never
    special either. A row of special tokens only is left as it is, with nothing to predict.

    Args:
        tokens: int64 [B, L] in [0, vocab_size). That is not checked, since values are not read
            back from the device: one outside, such as -100, is as any other that is not special,
            chosen and predicted unless ``special`` is true there.
        vocab_size: V.
        mask_id: the mask token; special itself.
        mask_ratio: share of the tokens to predict.
        special_ids: tokens that are never chosen, such as [CLS], [SEP] and padding.
        special: bool [B, L], true at further places that are never chosen.
        replace: probabilities of the mask token and of a random token; the rest stays.
        seed: see ``sslfast.masking``, as for all that follow; the device is that of the tokens.
        step: see ``sslfast.masking``.
        sample_ids: see ``sslfast.masking``.
        stream: see ``sslfast.masking``.

    Returns:
        TokenMask(tokens, labels, mask), all [B, L].

    Raises:
        TypeError: tokens that are not int64, a ``special`` that is not bool.
        ValueError: shapes that do not fit, a ratio outside (0, 1], probabilities of sum above 1,
            special ids outside the vocabulary, or a vocabulary of special tokens only.
    """
    if tokens.dtype != torch.int64 or tokens.dim() != 2:
        raise TypeError(f"tokens must be int64 [B, L], got {tokens.dtype} {list(tokens.shape)}")
    if special is not None and special.dtype != torch.bool:
        raise TypeError(f"special must be bool, got {special.dtype}")
    if special is not None and special.shape != tokens.shape:
        raise ValueError(
            f"special must have the tokens' shape {list(tokens.shape)}, got {list(special.shape)}"
        )
    if not 0 < mask_ratio <= 1:
        raise ValueError(f"mask_ratio must lie in (0, 1], got {mask_ratio}")
    if min(replace) < 0 or sum(replace) > 1 + 1e-9:
        raise ValueError(f"replace must be two probabilities of sum at most 1, got {replace}")
    reserved = sorted({mask_id, *special_ids})
    if not 0 <= reserved[0] <= reserved[-1] < vocab_size:
        raise ValueError(f"special tokens {reserved} must lie in a vocabulary of {vocab_size}")
    if len(reserved) == vocab_size:
        raise ValueError(
            f"all {vocab_size} tokens of the vocabulary are special: none can be drawn"
        )
    batch, length = tokens.shape
    words = source(
        TOKEN, batch, seed=seed, step=step, sample_ids=sample_ids, stream=stream,
        device=tokens.device,
    )  # fmt: skip
    keys, action, other = words.words(3 * length).unflatten(1, (3, length)).unbind(1)
    never = torch.zeros_like(tokens, dtype=torch.bool) if special is None else special
    for token in reserved:
        never = never | (tokens == token)
    candidates = length - never.sum(1)
    # One product of float64, rounded as Python does (half to even): the same on every device.
    chosen = (candidates.double() * mask_ratio).round().long()
    mask = smallest_keys(
        keys + (never.long() << 32), torch.minimum(chosen.clamp_min(1), candidates)
    )
    random_token = below(other, vocab_size - len(reserved))
    for token in reserved:  # ascending: each moves what lies at or above it up by one
        random_token = random_token + (random_token >= token)
    masked, randomized = fixed_point(replace[0], 32), fixed_point(sum(replace), 32)
    corrupted = torch.where(action < randomized, random_token, tokens)
    corrupted = torch.where(action < masked, mask_id, corrupted)
    return TokenMask(torch.where(mask, corrupted, tokens), torch.where(mask, tokens, -100), mask)
