"""Losses and kernels as functions. Every loss is a few operations on what one op returns per row.

All take float16, bfloat16, float32 or float64 embeddings and accumulate in float32 (float64 for
float64). Shapes, dtypes and devices are checked and raise; values never are: non-finite in,
non-finite out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.kernels.similarity_softmax import accumulation_dtype
from sslfast.ops.similarity_softmax import similarity_softmax

__all__ = ["clip", "info_nce", "ntxent", "supcon"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_embeddings(same_rows: bool = True, **tensors: Tensor) -> None:
    """Raise unless all are non-empty [N, D] matrices of one shape, floating dtype and device.

    Args:
        same_rows: whether N must be the same, and not only D.
        tensors: by the names that messages use.

    Raises:
        TypeError: not a tensor, or not of a floating dtype.
        ValueError: wrong or different shapes, empty, or different dtypes or devices.
    """
    first_name, first = next(iter(tensors.items()))
    what = "shape" if same_rows else "dimension"
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in FLOATS:
            raise TypeError(f"{name} must hold floating-point embeddings, got {x.dtype}")
        if x.dim() != 2:
            raise ValueError(f"{name} must have shape [N, D], got {list(x.shape)}")
        if x.numel() == 0:
            raise ValueError(f"{name} is empty: shape {list(x.shape)}")
        if x.shape[1] != first.shape[1] or (same_rows and len(x) != len(first)):
            raise ValueError(
                f"{first_name} and {name} must have the same {what}, "
                f"got {list(first.shape)} and {list(x.shape)}"
            )
        if x.dtype != first.dtype:
            raise ValueError(f"{first_name} is {first.dtype}, but {name} is {x.dtype}")
        if x.device != first.device:
            raise ValueError(f"{first_name} is on {first.device}, but {name} is on {x.device}")


def scale_of(temperature: float | Tensor, like: Tensor) -> Tensor:
    """1 / temperature as the 0-d tensor that the op takes; gradients reach a tensor temperature.

    Raises:
        ValueError: a temperature of 0 (or not a number), or a tensor of more than one element.
    """
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ValueError(f"temperature must be one number, got {list(temperature.shape)}")
        return as_scale(temperature, like).reciprocal()
    if not abs(temperature) > 0:
        raise ValueError(f"temperature must be a number other than 0, got {temperature}")
    return as_scale(1.0 / temperature, like)


def as_scale(logit_scale: float | Tensor, like: Tensor) -> Tensor:
    """A scale as the 0-d tensor that the op takes; gradients reach a tensor.

    Raises:
        ValueError: a tensor of more than one element.
    """
    dtype = accumulation_dtype(like.dtype)
    if not isinstance(logit_scale, Tensor):
        return torch.full((), logit_scale, dtype=dtype, device=like.device)
    if logit_scale.numel() != 1:
        raise ValueError(f"the scale must be one number, got {list(logit_scale.shape)}")
    return logit_scale.reshape(()).to(device=like.device, dtype=dtype)


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """Apply "none", "mean" or "sum" to per-row losses.

    Raises:
        ValueError: another reduction.
    """
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def info_nce_from_logits(lse: Tensor, positive: Tensor) -> Tensor:
    """-log(exp(positive) / (exp(positive) + exp(lse))) per row, exact when pairs have converged.

    ``lse`` is over the negatives alone, so that the loss is softplus(lse - positive) and no two
    large numbers are subtracted where the result is small.
    """
    # Beyond 40, log1p(exp(-x)) is below the resolution of float64: softplus(x) is x.
    return F.softplus(lse - positive, threshold=40.0)


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


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    negative_mode: str = "unpaired",
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, equation 4) on cosine similarities.

    Args:
        query: [N, D].
        positive_key: the key of each query [N, D].
        negative_keys: None: the other queries' keys; "unpaired": [K, D], shared by all queries;
            "paired": [N, K, D], each query's own.
        temperature: a number, or a 0-d tensor, which may need a gradient.
        reduction: "mean", "sum" or "none" (losses [N]).
        negative_mode: "unpaired" or "paired".

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: embeddings that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit, a temperature of 0, another mode.
    """
    check_embeddings(query=query, positive_key=positive_key)
    if negative_mode not in ("unpaired", "paired"):
        raise ValueError(f"negative_mode must be 'unpaired' or 'paired', got {negative_mode!r}")
    scale = scale_of(temperature, query)
    if negative_keys is None:
        lse, positive, _ = similarity_softmax(
            query, positive_key, scale, 0, 0, False, True, column_lse=False
        )
        return reduce(info_nce_from_logits(lse, positive), reduction)
    q, k = (F.normalize(x.to(scale.dtype), dim=1) for x in (query, positive_key))
    positive = scale * (q * k).sum(1)
    if negative_mode == "unpaired":
        check_embeddings(False, query=query, negative_keys=negative_keys)
        # No column is a positive: they are all negatives.
        lse, _, _ = similarity_softmax(
            query, negative_keys, scale, -1, 0, False, True, column_lse=False
        )
    else:
        n, d = query.shape
        if negative_keys.dim() != 3 or negative_keys.shape[::2] != (n, d):
            raise ValueError(
                f"paired negative_keys must have shape [{n}, K, {d}], got "
                f"{list(negative_keys.shape)}"
            )
        # Each query has keys of its own: N K logits are no larger than the keys themselves.
        keys = F.normalize(negative_keys.to(scale.dtype), dim=2)
        lse = (scale * torch.einsum("nd,nkd->nk", q, keys)).logsumexp(1)
    return reduce(info_nce_from_logits(lse, positive), reduction)


def clip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    *,
    reduction: str = "mean",
) -> Tensor:
    """The symmetric loss of CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3).

    The mean of two cross-entropies over logits s <image_i, text_j>: of the text of each image, and
    of the image of each text. Features are taken as they are: normalise them first, as CLIP does.

    Args:
        image_features: [N, D].
        text_features: [N, D], row i belonging to image i.
        logit_scale: s, a number or a 0-d tensor, which may need a gradient.
        reduction: "mean", "sum" or "none" (losses [N] of the pairs).

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: features that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit.
    """
    check_embeddings(image_features=image_features, text_features=text_features)
    lse, positive, lse_columns = similarity_softmax(
        image_features,
        text_features,
        as_scale(logit_scale, image_features),
        shift=0,
        column_base=0,
        leave_out_self=False,
        normalize=False,
        column_lse=True,
    )
    image, text = (info_nce_from_logits(side, positive) for side in (lse, lse_columns))
    return reduce((image + text) / 2, reduction)


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
    check_embeddings(features=features)
    m = len(features)
    if labels.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != (m,) or labels.device != features.device:
        raise ValueError(
            f"labels must have shape [{m}] on {features.device}, got {list(labels.shape)} "
            f"on {labels.device}"
        )
    scale = scale_of(temperature, features)
    z = F.normalize(features.to(scale.dtype), dim=1)
    # Shift 0 makes a row its own positive, which the sum leaves out: all others remain.
    lse, _, _ = similarity_softmax(
        z.to(features.dtype), None, scale, 0, 0, True, normalize=False, column_lse=False
    )
    # Sum of a class's rows without a host read: classes are numbered by sorting.
    order = labels.argsort(stable=True)
    first = torch.ones_like(labels, dtype=torch.bool)
    first[1:] = labels[order[1:]] != labels[order[:-1]]
    group = torch.empty_like(order).index_copy_(0, order, first.cumsum(0) - 1)
    sums = torch.zeros_like(z).index_add(0, group, z)
    others = torch.zeros(m, dtype=z.dtype, device=z.device)
    others = others.index_add(0, group, torch.ones_like(others))[group] - 1
    positives = scale * ((z * sums[group]).sum(1) - (z * z).sum(1))
    has = others > 0
    loss = torch.where(has, lse - positives / others.clamp_min(1), 0)
    if reduction == "mean":
        return loss.sum() / has.sum().clamp_min(1)
    return reduce(loss, reduction)
