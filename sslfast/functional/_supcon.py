"""The supervised contrastive loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._arguments import checked
from sslfast.ops.class_sums import class_sums, classes_of
from sslfast.ops.similarity_softmax import similarity_softmax

from ._common import check_labels, reduce, scale_of


@checked
def supcon(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362, L_out of equation 2).

    l_i = -1/|P(i)| sum_{p in P(i)} log(exp(t_ip) / sum_{a != i} exp(t_ia)), P(i) the other rows
    with the label of i, t cosine similarities over the temperature. A row without any is left out.

    Args:
        features: [M, D].
        labels: int64 [M].
        temperature: a number, or a 0-d tensor, which may need a gradient.
        reduction: "mean" (over rows that have a positive), "sum" or "none" (losses [M], 0 for a
            row without a positive).

    Returns:
        The loss in float32 (float64 for float64 inputs); 0 where no row has a positive.

    Raises:
        TypeError: features that are no floating-point tensor, labels that are no integers.
        ValueError: shapes or devices that do not fit, a temperature of 0.
    """
    check_labels(features, labels)
    scale = scale_of(temperature, features)
    z = F.normalize(features.to(scale.dtype), dim=1)
    # Shift 0 makes a row its own positive, which the sum leaves out: all others remain.
    lse, _, _ = similarity_softmax(
        z.to(features.dtype), None, scale, 0, 0, True, normalize=False, column_lse=False
    )
    classes, sizes = classes_of(labels)
    of_class = class_sums(z, classes)
    others = (sizes - 1).to(lse.dtype)
    positives = scale * ((z * of_class).sum(1) - (z * z).sum(1))
    has = others > 0
    loss = torch.where(has, lse - positives / others.clamp_min(1), 0)
    if reduction == "mean":
        return (loss.sum() / has.sum().clamp_min(1)).to(scale.dtype)
    return reduce(loss, reduction).to(scale.dtype)
