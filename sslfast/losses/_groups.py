"""Losses with several positives a row, without false negatives, and with hard extra negatives."""

import torch
from torch import Tensor

from sslfast.kernels.class_sums.op import class_sums, classes_of
from sslfast.kernels.exchange import gather_rows
from sslfast.kernels.grouped_softmax import Groups
from sslfast.kernels.grouped_softmax.op import grouped_softmax
from sslfast.kernels.similarity_softmax import info_nce_from_logits
from sslfast.losses._variants import Candidates


def _loss(
    c: Candidates, lse: Tensor, positive: Tensor, mean: Tensor | None, count: Tensor, unit: bool
) -> Tensor:
    """Losses of rows; ``mean``: of their positives' logits, where these are counted outside."""
    inside = info_nce_from_logits(lse, positive, unit)
    if mean is None:
        return inside
    # Of more than one positive the loss is no less than the logarithm of their number, and a
    # difference of logits may be taken.
    return torch.where(count > 1, torch.logaddexp(lse, positive) - mean, inside)


def pair_losses(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    c: Candidates,
    *,
    both: bool,
    unit: bool,
    group: str | None = None,
) -> tuple[Tensor, int]:
    """Losses [N] of rows x among the columns y, or with ``both`` the mean of both directions'.

    Args:
        x: [N, D].
        y: [N, D], row i belonging to row i of x.
        scale: 0-d.
        c: the options.
        both: also of y among x, where the extra negatives are none.
        unit: whether embeddings are of unit length.
        group: ``name_of`` the process group; None: this process alone.

    Returns:
        Losses [N], and the number of pairs of all ranks.
    """
    n = len(x)
    ids = torch.arange(n, device=x.device) if c.group_ids is None else c.group_ids.long()
    ignored = None if c.ignore_ids is None else c.ignore_ids.long()
    extra, places, all_x, all_y = c.negatives, slice(0, n), x, y
    if group is not None:
        all_y, places = gather_rows(y, group)
        all_x = gather_rows(x, group)[0] if both else x
        ids = places if c.group_ids is None else ids
        ids = gather_rows(ids, group)[0]
        ignored = None if ignored is None else gather_rows(ignored, group)[0]
        extra = None if extra is None else gather_rows(extra, group)[0]
    classes, counts = classes_of(ids)
    several = c.positives == "outside" and c.group_ids is not None

    def groups(count: int) -> Groups:
        """Of the rows here among all pairs' columns, and ``count`` that are nobody's."""
        nobody = classes.new_full((count,), -1)
        column = torch.cat((classes, nobody))
        if ignored is None:
            return Groups(classes[places], column, threshold=c.threshold)
        of_rows = ignored.masked_fill(ignored < 0, -1)[places]
        of_columns = torch.cat((ignored.masked_fill(ignored < 0, -2), nobody - 1))
        return Groups(classes[places], column, of_rows, of_columns, c.threshold)

    def losses(lse: Tensor, positive: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        mean, count = None, counts[places]
        if several:
            sums = class_sums(columns.to(scale.dtype), classes)[places]
            mean = scale * (rows.to(scale.dtype) * sums).sum(1) / count
        return _loss(c, lse, positive, mean, count, unit)

    columns, more = (all_y, 0) if extra is None else (torch.cat((all_y, extra)), len(extra))
    one_call = both and group is None
    lse, positive, *of_columns = grouped_softmax(x, columns, scale, groups(more), sides=one_call)
    found = losses(lse, positive, x, all_y)
    if both:
        if one_call:
            lse, positive = (t[:n] for t in of_columns)
        else:
            lse, positive, *_ = grouped_softmax(y, all_x, scale, groups(0))
        found = (found + losses(lse, positive, y, all_x)) / 2
    return found, len(classes)


def view_losses(z: Tensor, scale: Tensor, c: Candidates, *, unit: bool) -> Tensor:
    """Losses [2N] of the rows z of two views, first ones first, among all others.

    The positives of a row are the other view of its sample and, with group_ids, both views of the
    samples of its group.
    """
    n = len(z) // 2
    ids = torch.arange(n, device=z.device) if c.group_ids is None else c.group_ids.long()
    classes, counts = classes_of(torch.cat((ids, ids)))
    ignored = of_columns = None
    if c.ignore_ids is not None:
        twice = c.ignore_ids.long().repeat(2)
        ignored, of_columns = (twice.masked_fill(twice < 0, k) for k in (-1, -2))
    groups = Groups(classes, classes, ignored, of_columns, c.threshold, own=0)
    lse, positive, *_ = grouped_softmax(z, None, scale, groups)
    mean, count = None, counts - 1
    if c.positives == "outside" and c.group_ids is not None:
        wide = z.to(scale.dtype)
        mean = scale * (wide * (class_sums(wide, classes) - wide)).sum(1) / count
    return _loss(c, lse, positive, mean, count, unit)
