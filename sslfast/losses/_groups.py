"""Losses with several positives a row, without false negatives, and with hard extra negatives."""

import torch
from torch import Tensor

from sslfast.kernels.class_sums.op import class_sums, classes_of
from sslfast.kernels.exchange import gather_own_first, gather_rows
from sslfast.kernels.grouped_softmax import Groups
from sslfast.kernels.grouped_softmax.op import grouped_softmax
from sslfast.kernels.similarity_softmax import info_nce_from_logits
from sslfast.losses._variants import Candidates


def _loss(lse: Tensor, positive: Tensor, mean: Tensor | None, count: Tensor, unit: bool) -> Tensor:
    """Losses of rows; ``mean``: of their positives' logits, where these are counted outside."""
    inside = info_nce_from_logits(lse, positive, unit)
    if mean is None:
        return inside
    # Of more than one positive the loss is no less than the logarithm of their number, and a
    # difference of logits may be taken.
    return torch.where(count > 1, torch.logaddexp(lse, positive) - mean, inside)


def _everywhere(x: Tensor, group: str | None) -> Tensor:
    """The rows of all ranks, this rank's first."""
    return x if group is None else gather_own_first(x, group)


def _groups(
    classes: Tensor,
    ignored: Tensor | None,
    rows: int,
    threshold: float | None,
    extra: int = 0,
    own: int | None = None,
) -> Groups:
    """Of the first rows among all columns and ``extra`` ones that are nobody's."""
    nobody = classes.new_full((extra,), -1)
    column = torch.cat((classes, nobody)) if extra else classes
    if ignored is None:
        return Groups(classes[:rows], column, threshold=threshold, own=own)
    of_rows = ignored[:rows].masked_fill(ignored[:rows] < 0, -1)
    of_columns = torch.cat((ignored.masked_fill(ignored < 0, -2), nobody - 1))
    return Groups(classes[:rows], column, of_rows, of_columns, threshold, own)


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
    n, all_y = len(x), _everywhere(y, group)
    all_x = _everywhere(x, group) if both else x
    ids = torch.arange(len(all_y), device=x.device)
    if c.group_ids is not None:
        ids = _everywhere(c.group_ids.long(), group)
    ignored = None if c.ignore_ids is None else _everywhere(c.ignore_ids.long(), group)
    extra = None if c.negatives is None else _everywhere(c.negatives, group)
    classes, counts = classes_of(ids)

    def losses(lse: Tensor, positive: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        mean, count = None, counts[:n]
        if c.several_outside:
            sums = class_sums(columns.to(scale.dtype), classes)[:n]
            mean = scale * (rows.to(scale.dtype) * sums).sum(1) / count
        return _loss(lse, positive, mean, count, unit)

    columns, more = (all_y, 0) if extra is None else (torch.cat((all_y, extra)), len(extra))
    groups = _groups(classes, ignored, n, c.threshold, more)
    one_call = both and group is None
    lse, positive, *of_columns = grouped_softmax(x, columns, scale, groups, sides=one_call)
    found = losses(lse, positive, x, all_y)
    if both:
        if one_call:
            lse, positive = (t[:n] for t in of_columns)
        else:
            groups = _groups(classes, ignored, n, c.threshold)
            lse, positive, *_ = grouped_softmax(y, all_x, scale, groups)
        found = (found + losses(lse, positive, y, all_x)) / 2
    return found, len(classes)


def view_losses(
    z: Tensor, scale: Tensor, c: Candidates, *, unit: bool, group: str | None = None
) -> tuple[Tensor, int]:
    """Losses [2N] of the rows z of two views, first ones first, among all others.

    The positives of a row are the other view of its sample and, with group_ids, both views of the
    samples of its group.

    Returns:
        Losses [2N], and the number of rows of all ranks.
    """
    ids = c.group_ids
    if ids is None:
        ids = torch.arange(len(z) // 2, device=z.device)
        if group is not None:
            _, ids = gather_rows(ids, group)  # samples of other ranks have other numbers
    ignored = None if c.ignore_ids is None else c.ignore_ids.repeat(2)
    found, _, rows = row_losses(z, ids.repeat(2), ignored, scale, c, unit=unit, group=group)
    return found, rows


def row_losses(
    z: Tensor,
    ids: Tensor,
    ignored: Tensor | None,
    scale: Tensor,
    c: Candidates,
    *,
    unit: bool,
    group: str | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Losses [M] of rows z among all others, of which those of the same id are positives.

    Args:
        z: [M, D].
        ids: integers [M].
        ignored: integers [M], or None.
        scale: 0-d.
        c: other options.
        unit: whether rows are of unit length.
        group: ``name_of`` the process group; None: this process alone.

    Returns:
        Losses [M], 0 without a positive; how many positives each row has [M]; rows of all ranks.
    """
    m, columns = len(z), None if group is None else gather_own_first(z, group)
    classes, counts = classes_of(_everywhere(ids.long(), group))
    ignored = None if ignored is None else _everywhere(ignored.long(), group)
    groups = _groups(classes, ignored, m, c.threshold, own=0)
    lse, positive, *_ = grouped_softmax(z, columns, scale, groups)
    mean, count = None, counts[:m] - 1
    if c.several_outside:
        wide = (z if columns is None else columns).to(scale.dtype)
        own = wide[:m]
        mean = scale * (own * (class_sums(wide, classes)[:m] - own)).sum(1) / count.clamp_min(1)
    # What is no number has no gradient of 0 either: nothing is left of a row without positives.
    positive = torch.where(count > 0, positive, 0)
    found = torch.where(count > 0, _loss(lse, positive, mean, count, unit), 0)
    return found, count, len(classes)
