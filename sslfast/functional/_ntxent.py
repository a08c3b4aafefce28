"""NT-Xent, the loss of SimCLR."""

import torch
from torch import Tensor

from sslfast.ops.similarity_softmax import similarity_softmax

from ._common import check_embeddings, info_nce_from_logits, reduce, scale_of


def ntxent(
    out0: Tensor,
    out1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, arXiv:2002.05709, equation 1).

    With z the 2N embeddings [out0; out1], divided by their norms, and p(i) the other view of i:
    l_i = -log(exp(<z_i, z_p(i)> / t) / sum_{k != i} exp(<z_i, z_k> / t)).

    Args:
        out0: embeddings of the first views [N, D].
        out1: embeddings of the second views [N, D], of the same dtype and device.
        temperature: a number, negative ones allowed, or a 0-d tensor, which may need a gradient.
        normalize: divide embeddings by their Euclidean norm first.
        reduction: "mean", "sum" or "none" (losses [2N], those of out0 first).

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: embeddings that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit, a temperature of 0.
    """
    check_embeddings(out0=out0, out1=out1)
    z = torch.cat((out0, out1))
    lse, positive, _ = similarity_softmax(
        z,
        None,
        scale_of(temperature, z),
        shift=len(out0),
        column_base=0,
        leave_out_self=True,
        normalize=normalize,
        column_lse=False,
    )
    return reduce(info_nce_from_logits(lse, positive), reduction)
