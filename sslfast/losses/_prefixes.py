"""Losses of all prefixes of the embeddings in one sweep, for the losses that have such a form."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.kernels.exchange import gather_own_first, name_of, world_size
from sslfast.kernels.matryoshka_softmax.op import matryoshka_softmax
from sslfast.kernels.similarity_softmax import Pairing, info_nce_from_logits
from sslfast.losses._inputs import as_scale, check_embeddings, reduce, scale_of, with_bias
from sslfast.losses.clip import ClipLoss
from sslfast.losses.infonce import InfoNCE
from sslfast.losses.ntxent import NTXentLoss

Losses = list[Tensor] | None


def losses_of_prefixes(
    loss: Callable[..., Tensor],
    dims: tuple[int, ...],
    normalize: bool,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Losses:
    """The loss of every prefix, or None where it takes a loop: around a ring of ranks, too.

    The loss is not called. It is wherever it has something to say: to hooks that wait for a call,
    or of arguments that it does not take.

    Args:
        loss: of a class in ``FORMS``, itself and no class derived from it.
        dims: lengths of the prefixes, growing.
        normalize: whether prefixes are divided by their norms before the loss.
        args: what the loss is called with, cut to the longest prefix.
        kwargs: the same, by name.
    """
    form = FORMS.get(type(loss))
    if form is None or len(dims) < 2 or _has_hooks(loss) or not _takes(type(loss), args, kwargs):
        return None
    return form(loss, dims, normalize, *args, **kwargs)


def _has_hooks(loss: Any) -> bool:
    before, after = loss._forward_pre_hooks, loss._forward_hooks
    return bool(before or after or loss._backward_pre_hooks or loss._backward_hooks)


def _takes(kind: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a loss of this class may be called so."""
    by_place, by_name, needed = _ARGUMENTS[kind]
    given = [*by_place[: len(args)], *kwargs]
    once = len(set(given)) == len(given)
    return len(args) <= len(by_place) and once and needed <= set(given) <= by_name


def _plain(loss: Any, candidates: dict[str, Tensor | None]) -> bool:
    """Whether every row has one positive and all other columns for negatives."""
    options = loss.false_negative_threshold, *candidates.values()
    return loss.positives == "outside" and all(x is None for x in options)


def _ntxent(
    loss: NTXentLoss,
    dims: tuple[int, ...],
    normalize: bool,
    out0: Tensor,
    out1: Tensor,
    **candidates: Tensor | None,
) -> Losses:
    around = loss._gathers and loss.exchange == "ring"
    if around or not _plain(loss, candidates):
        return None
    out0, out1 = check_embeddings(out0=out0, out1=out1)
    z = torch.cat((out0, out1))
    columns = gather_own_first(z, name_of(loss.process_group)) if loss._gathers else None
    scale, pairing = scale_of(loss.temperature, z), Pairing(len(z), len(out0), leave_out_self=True)
    lse, positive, _ = matryoshka_softmax(z, columns, scale, dims, pairing, normalize=True)
    losses = info_nce_from_logits(lse, positive, unit=True)
    if columns is None:
        return list(losses.mean(1).to(scale.dtype))
    factor = world_size(loss.process_group) / len(columns)
    return list((factor * losses.sum(1)).to(scale.dtype))


def _info_nce(
    loss: InfoNCE,
    dims: tuple[int, ...],
    normalize: bool,
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    **candidates: Tensor | None,
) -> Losses:
    if negative_keys is not None or not _plain(loss, candidates):
        return None
    query, key = check_embeddings(query=query, positive_key=positive_key)
    scale, pairing = scale_of(loss.temperature, query), Pairing(len(query))
    if loss.process_group is not None:
        key = gather_own_first(key, name_of(loss.process_group))
    lse, positive, _ = matryoshka_softmax(query, key, scale, dims, pairing, normalize=True)
    losses = info_nce_from_logits(lse, positive, unit=True)
    if loss.process_group is not None:
        factor = world_size(loss.process_group) / len(key)
        return list((factor * losses.sum(1)).to(scale.dtype))
    return [reduce(of_rows, loss.reduction).to(scale.dtype) for of_rows in losses]


@checked
def _clip(
    loss: ClipLoss,
    dims: tuple[int, ...],
    normalize: bool,
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: Any = None,
    output_dict: Any = False,
    **candidates: Tensor | None,
) -> Losses:
    ranks = loss.world_size > 1
    around = ranks and loss.exchange == "ring"
    if output_dict or around or not _plain(loss, candidates):
        return None
    x, y = check_embeddings(image_features=image_features, text_features=text_features)
    if loss.direction == "text_to_image":
        x, y = y, x
    both = loss.direction == "both"
    if both and y.requires_grad and not x.requires_grad:
        x, y = y, x  # a gradient of the rows alone costs less
    scale, all_x, all_y = as_scale(logit_scale, x), x, y
    if ranks:
        loss._check_rank()
        all_x, all_y = (gather_own_first(t, name_of(loss.process_group)) for t in (x, y))

    def softmax(rows: Tensor, columns: Tensor, sides: bool) -> tuple[Tensor, ...]:
        return matryoshka_softmax(
            rows, columns, scale, dims, Pairing(len(x)), normalize=normalize, column_lse=sides
        )

    lse, positive, lse_columns = softmax(x, all_y, both and not ranks)
    losses = info_nce_from_logits(lse, positive, unit=normalize)
    if both:
        if ranks:
            lse_columns, positive, _ = softmax(y, all_x, False)
        losses = (losses + info_nce_from_logits(lse_columns, positive, unit=normalize)) / 2
    found = losses.mean(1)
    if ranks:
        found = loss._of_all_ranks(loss.world_size / len(all_y) * losses.sum(1))
    return list(with_bias(found.to(scale.dtype), logit_bias))


FORMS: dict[Any, Callable[..., Losses]] = {
    ClipLoss: _clip,
    InfoNCE: _info_nce,
    NTXentLoss: _ntxent,
}

Arguments = tuple[tuple[str, ...], set[str], set[str]]


def _arguments_of(loss: type[nn.Module]) -> Arguments:
    """Names that a loss takes by their place, by name, and those that it needs."""
    found = list(inspect.signature(loss.forward).parameters.values())[1:]
    by_place = tuple(p.name for p in found if p.kind == p.POSITIONAL_OR_KEYWORD)
    return by_place, {p.name for p in found}, {p.name for p in found if p.default is p.empty}


_ARGUMENTS: dict[Any, Arguments] = {loss: _arguments_of(loss) for loss in FORMS}
