"""Decoder input of a masked autoencoder."""

from torch import Tensor

from sslfast._arguments import checked
from sslfast.functional._patches import as_table, check_data, check_ids, check_like
from sslfast.ops.restore_with_tokens import restore_with_tokens as op


@checked
def restore_with_tokens(
    visible: Tensor, token: Tensor, ids_restore: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Put encoded patches back at their places, with a mask token at all others.

    The decoder's input in MAE (He et al. 2022, arXiv:2111.06377, section 3):
    out[b, l] = (visible[b, r] if r < K else token) + positions[l] with r = ids_restore[b, l].

    Args:
        visible: [B, K, D], float16, bfloat16, float32 or float64.
        token: the mask token, D numbers in any shape, such as [D] or [1, 1, D].
        ids_restore: int64 [B, L] with L >= K, a permutation of 0 ... L - 1 in every row, as in
            ``sslfast.masking.PatchMask``. Repeated ones are not looked for: on the CPU the
            equation and its gradient still hold (zeros for a row of ``visible`` that no place
            shows); on a GPU the gradient is undefined then.
        positions: [L, D] or [1, L, D], added in the same pass.

    Returns:
        [B, L, D], of the dtype of ``visible``, which token and positions must have.

    Raises:
        TypeError: rows that are no floating-point tensor, indices that are not int64.
        ValueError: shapes, dtypes or devices that do not fit.
        IndexError: an index outside [0, L), on the CPU; on a GPU the result is undefined there.
    """
    check_data("visible", visible, "[B, K, D]")
    check_ids("ids_restore", ids_restore, len(visible), visible)
    _, keep, dim = visible.shape
    length = ids_restore.shape[1]
    if keep > length:
        raise ValueError(f"visible holds {keep} patches a sample, but ids_restore only {length}")
    token = token.reshape(-1)
    check_like("token", token, (dim,), visible)
    table = as_table("positions", positions, (length, dim))
    if table is not None:
        check_like("positions", table, (length, dim), visible)
    return op(visible, token, ids_restore, table)
