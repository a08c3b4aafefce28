"""NT-Xent, the loss of SimCLR."""

import torch
from torch import Tensor

from sslfast._arguments import checked
from sslfast.functional._common import check_embeddings, reduce, scale_of
from sslfast.functional._variants import Variant
from sslfast.ops.similarity_softmax import similarity_softmax
from sslfast.ops.unit_rows import wide_unit_rows


@checked
def ntxent(
    out0: Tensor,
    out1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    decoupled: bool = False,
    debiased: float = 0.0,
    label_smoothing: float = 0.0,
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
        decoupled: leave the positive out of the denominator (Yeh et al. 2021, equation 6).
        debiased: tau+, the share of false negatives to correct for, in [0, 1); supposes unit
            length, as normalize gives (Chuang et al. 2020, equation 8).
        label_smoothing: share of the target spread over all candidates, as F.cross_entropy does.

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: embeddings that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit, a temperature of 0, options out of
            range or more than one of the last three.
    """
    out0, out1 = check_embeddings(out0=out0, out1=out1)
    variant = Variant(decoupled, debiased, label_smoothing)
    z = torch.cat((out0, out1))
    scale = scale_of(temperature, z)
    lse, positive, _ = similarity_softmax(
        z,
        None,
        scale,
        shift=len(out0),
        column_base=0,
        leave_out_self=True,
        normalize=normalize,
        column_lse=False,
    )

    def mean_logit() -> Tensor:
        unit = wide_unit_rows(z) if normalize else z.to(scale.dtype)
        return scale * (unit * (unit.sum(0) - unit)).sum(1) / (len(z) - 1)

    losses = variant.losses(lse, positive, scale, len(z) - 2, mean_logit, normalize)
    return reduce(losses, reduction).to(scale.dtype)
