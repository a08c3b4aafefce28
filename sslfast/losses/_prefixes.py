"""Losses of all prefixes of the embeddings in one sweep, for the losses that have such a form."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.kernels.matryoshka_softmax.op import matryoshka_softmax
from sslfast.kernels.similarity_softmax import Pairing, info_nce_from_logits
from sslfast.losses._inputs import as_scale, check_embeddings, reduce, scale_of
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
    """The loss of every prefix, or None where it takes a loop: over ranks and on a GPU, too.

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


def _on_cpu(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == "cpu"


def _ntxent(
    loss: NTXentLoss, dims: tuple[int, ...], normalize: bool, out0: Tensor, out1: Tensor
) -> Losses:
    if loss.memory_bank is not None or loss._gathers or not _on_cpu(out0):
        return None
    out0, out1 = check_embeddings(out0=out0, out1=out1)
    z = torch.cat((out0, out1))
    scale, pairing = scale_of(loss.temperature, z), Pairing(len(z), len(out0), leave_out_self=True)
    lse, positive, _ = matryoshka_softmax(z, None, scale, dims, pairing, normalize=True)
    losses = info_nce_from_logits(lse, positive, unit=True)
    return list(losses.mean(1).to(scale.dtype))


def _info_nce(
    loss: InfoNCE,
    dims: tuple[int, ...],
    normalize: bool,
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
) -> Losses:
    alone = negative_keys is None and loss.process_group is None and _on_cpu(query)
    if not alone or loss.negative_mode not in ("unpaired", "paired"):
        return None
    query, key = check_embeddings(query=query, positive_key=positive_key)
    scale, pairing = scale_of(loss.temperature, query), Pairing(len(query))
    lse, positive, _ = matryoshka_softmax(query, key, scale, dims, pairing, normalize=True)
    losses = info_nce_from_logits(lse, positive, unit=True)
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
    options = loss.false_negative_threshold, *candidates.values()
    plain = loss.positives == "outside" and all(x is None for x in options)
    if not plain or output_dict or loss.world_size > 1 or not _on_cpu(image_features):
        return None
    x, y = check_embeddings(image_features=image_features, text_features=text_features)
    if loss.direction == "text_to_image":
        x, y = y, x
    both = loss.direction == "both"
    if both and y.requires_grad and not x.requires_grad:
        x, y = y, x  # a gradient of the rows alone costs less
    scale = as_scale(logit_scale, x)
    lse, positive, lse_columns = matryoshka_softmax(
        x, y, scale, dims, Pairing(len(x)), normalize=normalize, column_lse=both
    )
    losses = info_nce_from_logits(lse, positive, unit=normalize)
    if both:
        losses = (losses + info_nce_from_logits(lse_columns, positive, unit=normalize)) / 2
    found = losses.mean(1).to(scale.dtype)
    if isinstance(logit_bias, Tensor):
        found = found + 0 * logit_bias.sum()  # it keeps a gradient, which DDP waits for
    return list(found)


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
