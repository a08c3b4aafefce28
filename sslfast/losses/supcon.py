"""The supervised contrastive loss."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.kernels.class_sums.op import class_sums, classes_of, in_pairs
from sslfast.kernels.class_sums.ranks import global_class_means
from sslfast.kernels.exchange import Group, name_of, world_size
from sslfast.kernels.similarity_softmax import Pairing, info_nce_from_logits
from sslfast.kernels.similarity_softmax.op import similarity_softmax
from sslfast.kernels.similarity_softmax.ranks import global_similarity_softmax
from sslfast.kernels.unit_rows.op import wide_unit_rows
from sslfast.losses._inputs import check_labels, check_temperature, reduce, scale_of


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
        rounded[: 2 * half], None, scale, Pairing(2 * half, half, leave_out_self=True)
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


def _global_losses(
    z: Tensor, labels: Tensor, scale: Tensor, group: Group, how: str = "gather"
) -> tuple[Tensor, Tensor]:
    """Losses of supervised contrast among the rows of all ranks, in an order of their own.

    Args:
        z: unit features [n, D] of this rank, in the accumulation dtype; n may differ between ranks.
        labels: integers [n].
        scale: 1 / temperature, 0-d.
        group: the process group, or None for all ranks.
        how: "gather" or "ring".

    Returns:
        Losses [n] of this rank's rows, 0 without a positive, and how many positives each has [n].
    """
    name, n = name_of(group), len(z)
    classes, here = classes_of(labels)
    order = in_pairs(classes, here)
    z, labels, here = z[order], labels[order], here[order]
    # With shift 0 a row is its own positive, which the sum leaves out: all others remain.
    lse, _, partner, _, sizes = global_similarity_softmax(
        z, None, scale, shift=0 if n % 2 else n // 2, both=False, group=name, how=how
    )
    if n % 2:
        partner = torch.full_like(lse, -torch.inf)
    means, others, *_ = global_class_means(z, scale, labels, sizes, name)
    only = (here == 2) & (others == 1) & (n % 2 == 0)
    return supcon_from_logits(lse, partner, means, others, only), others


class SupConLoss(nn.Module):
    """Supervised contrastive loss (Khosla et al. 2020, L_out); see ``supcon``.

    Args:
        temperature: divides the cosine similarities; not 0.
        process_group: ranks whose rows are positives and negatives too; None: this one alone.
            Gradients averaged over ranks (DDP, FSDP) are those of one process with the global
            batch. Two rows alone in their class belong on one rank, of an even number of rows:
            elsewhere a loss below 1e-3 has but three digits.

    Shapes:
        features [M, D], labels int64 [M]; returns the mean over rows that have a positive (with a
        process_group: W over their number on all ranks, times the sum over this rank's).

    Raises:
        TypeError, ValueError: as ``sslfast.functional.supcon``.
    """

    @checked
    def __init__(self, temperature: float | Tensor = 0.1, process_group: Any = None) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.process_group = process_group

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss."""
        if self.process_group is None:
            return supcon(features, labels, self.temperature)
        check_labels(features, labels)
        scale = scale_of(self.temperature, features)
        z = wide_unit_rows(features)
        losses, positives = _global_losses(z, labels, scale, self.process_group)
        count = (positives > 0).sum()
        dist.all_reduce(count, group=self.process_group)
        loss = losses.sum() * world_size(self.process_group) / count.clamp_min(1)
        return loss.to(scale.dtype)
