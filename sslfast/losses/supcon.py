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
from sslfast.kernels.unit_rows.op import unit_rows, wide_unit_rows
from sslfast.losses._inputs import check_labels, check_temperature, reduce, scale_of
from sslfast.losses._variants import Candidates, check_positives


@checked
def supcon(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    reduction: str = "mean",
    positives: str = "outside",
) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362, equations 2 and 3).

    l_i = -1/|P(i)| sum_{p in P(i)} log(exp(t_ip) / sum_{a != i} exp(t_ia)), P(i) the other rows
    with the label of i, t cosine similarities over the temperature. A row without any is left out.

    Args:
        features: [M, D].
        labels: int64 [M].
        temperature: a number, or a 0-d tensor, which may need a gradient.
        reduction: "mean" (over rows that have a positive), "sum" or "none" (losses [M], 0 for a
            row without a positive).
        positives: "outside", which is L_out, as above; "inside": L_in, the logarithm of the mean
            over P(i) instead of the mean of logarithms (``ntxent``'s "inside" has the sum in place
            of the mean, and the same gradient).

    Returns:
        The loss in float32 (float64 for float64 inputs); 0 where no row has a positive.

    Raises:
        TypeError: features that are no floating-point tensor, labels that are no integers.
        ValueError: shapes or devices that do not fit, a temperature of 0, another word for
            positives.
    """
    check_labels(features, labels)
    check_positives(positives)
    scale = scale_of(temperature, features)
    if positives == "inside":
        loss, others = _inside(features, labels, scale)
        return _reduced(loss, others, reduction).to(scale.dtype)
    z = wide_unit_rows(features)
    classes, sizes = classes_of(labels)
    order = in_pairs(classes, sizes)
    z, classes = z.index_select(0, order), classes[order]
    others = (sizes[order] - 1).to(scale.dtype)
    lse, partner = _among_all(z, features.dtype, scale)
    found = (z * class_sums(z, classes)).sum(1) - (z * z).sum(1)
    means = scale * found / others.clamp_min(1)
    loss = supcon_from_logits(lse, partner, means, others, others == 1)
    if reduction == "none":
        loss = torch.empty_like(loss).index_copy(0, order, loss)
    return _reduced(loss, others, reduction).to(scale.dtype)


def _reduced(loss: Tensor, others: Tensor, reduction: str) -> Tensor:
    """As asked for; the mean is over rows that have positives."""
    if reduction == "mean":
        return loss.sum() / (others > 0).sum().clamp_min(1)
    return reduce(loss, reduction)


def _inside(
    features: Tensor, labels: Tensor, scale: Tensor, group: str | None = None
) -> tuple[Tensor, Tensor]:
    """Losses [M] of L_in, 0 without a positive, and how many positives each row has [M]."""
    from sslfast.losses._groups import row_losses  # who needs none of it loads none

    c = Candidates("inside", group_ids=labels)
    z = unit_rows(features)
    loss, others, _ = row_losses(z, labels, None, scale, c, unit=True, group=group)
    return loss + others.clamp_min(1).to(loss.dtype).log(), others


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
    """Supervised contrastive loss (Khosla et al. 2020); see ``sslfast.functional.supcon``.

    Args:
        temperature: divides the cosine similarities; not 0.
        process_group: ranks whose rows are positives and negatives too; None: this one alone.
            Gradients averaged over ranks (DDP, FSDP) are those of one process with the global
            batch. Two rows alone in their class belong on one rank, of an even number of rows:
            elsewhere a loss below 1e-3 has but three digits.
        positives: as in ``sslfast.functional.supcon``.

    Shapes:
        features [M, D], labels int64 [M]; returns the mean over rows that have a positive (with a
        process_group: W over their number on all ranks, times the sum over this rank's).

    Raises:
        TypeError, ValueError: as ``sslfast.functional.supcon``.
    """

    @checked
    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        process_group: Any = None,
        *,
        positives: str = "outside",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_positives(positives)
        self.temperature = temperature
        self.process_group = process_group
        self.positives = positives

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"temperature={self.temperature}, positives={self.positives!r}"

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss."""
        if self.process_group is None:
            return supcon(features, labels, self.temperature, positives=self.positives)
        check_labels(features, labels)
        scale = scale_of(self.temperature, features)
        if self.positives == "inside":
            name = name_of(self.process_group)
            losses, others = _inside(features, labels, scale, name)
        else:
            z = wide_unit_rows(features)
            losses, others = _global_losses(z, labels, scale, self.process_group)
        count = (others > 0).sum()
        dist.all_reduce(count, group=self.process_group)
        loss = losses.sum() * world_size(self.process_group) / count.clamp_min(1)
        return loss.to(scale.dtype)
