"""The supervised contrastive loss."""

import torch
from torch import Tensor

from sslfast._arguments import checked
from sslfast.functional._common import check_labels, reduce, scale_of
from sslfast.ops._logits import info_nce_from_logits
from sslfast.ops.class_sums import class_sums, classes_of, in_pairs
from sslfast.ops.similarity_softmax import similarity_softmax
from sslfast.ops.unit_rows import wide_unit_rows


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
    z = wide_unit_rows(features)
    classes, sizes = classes_of(labels)
    order = in_pairs(classes, sizes)
    z, classes = z.index_select(0, order), classes[order]
    others = (sizes[order] - 1).to(scale.dtype)
    lse, partner = _among_all(z, features.dtype, scale)
    found = (z * class_sums(z, classes)).sum(1) - (z * z).sum(1)
    means = scale * found / others.clamp_min(1)
    loss = supcon_from_logits(lse, partner, means, others, others == 1)
    if reduction == "mean":
        return (loss.sum() / (others > 0).sum().clamp_min(1)).to(scale.dtype)
    return reduce(torch.empty_like(loss).index_copy(0, order, loss), reduction).to(scale.dtype)


def _among_all(z: Tensor, dtype: torch.dtype, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exps over all other rows but the partner, half their number away, and its logit.

    The last of an odd number has none: -inf.
    """
    half = len(z) // 2
    rounded = z.to(dtype)
    lse, partner, _ = similarity_softmax(
        rounded[: 2 * half], None, scale, half, 0, True, normalize=False, column_lse=False
    )
    if len(z) % 2:
        *others, last = rounded.to(scale.dtype).split((2 * half, 1))
        logits = (scale * (others[0] * last).sum(1)).to(lse.dtype)
        lse = torch.cat((torch.logaddexp(lse, logits), logits.logsumexp(0, keepdim=True)))
        partner = torch.cat((partner, torch.full_like(lse[-1:], -torch.inf)))
    return lse, partner


def supcon_from_logits(
    lse: Tensor, partner: Tensor, means: Tensor, others: Tensor, only: Tensor
) -> Tensor:
    """Losses of rows, 0 without a positive.

    One positive alone is the partner, and the loss that of ``info_nce_from_logits``, as exact. With
    more it is no less than the logarithm of their number, and a difference of logits may be taken.

    Args:
        lse: log-sum-exp over all other rows but the partner [M].
        partner: its logit [M]; -inf where lse is over all other rows.
        means: mean logit of the positives [M].
        others: how many these are [M].
        only: where the partner is the only positive [M].
    """
    of_one = info_nce_from_logits(lse, partner, unit=True)
    loss = torch.where(only, of_one, torch.logaddexp(lse, partner) - means)
    return torch.where(others > 0, loss, 0)
