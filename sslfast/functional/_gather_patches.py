"""Tokens of visible patches."""

from torch import Tensor

from sslfast._arguments import checked
from sslfast.functional._patches import check_data, check_ids
from sslfast.ops.gather_patches import gather_patches as op


@checked
def gather_patches(tokens: Tensor, ids_keep: Tensor) -> Tensor:
    """Take the tokens of some patches: out[b, k] = tokens[b, ids_keep[b, k]].

    The gradient adds up where an index is repeated, in the order of k.

    Args:
        tokens: [B, L, D], float16, bfloat16, float32 or float64.
        ids_keep: int64 [B, K] in [0, L), as masks of ``sslfast.masking`` have them.

    Returns:
        [B, K, D].

    Raises:
        TypeError: tokens that are no floating-point tensor, indices that are not int64.
        ValueError: shapes or devices that do not fit.
        IndexError: an index out of range, on the CPU; on a GPU the result is undefined there.
    """
    check_data("tokens", tokens, "[B, L, D]")
    check_ids("ids_keep", ids_keep, len(tokens), tokens)
    return op(tokens, ids_keep)
