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

__all__ = ["info_nce_from_logits", "ntxent", "reduce"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_embeddings(**tensors: Tensor) -> None:
    """Raise unless all are non-empty [N, D] matrices of one shape, floating dtype and device.

    Raises:
        TypeError: not a tensor, or not of a floating dtype.
        ValueError: wrong or different shapes, empty, or different dtypes or devices.
    """
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in FLOATS:
            raise TypeError(f"{name} must hold floating-point embeddings, got {x.dtype}")
        if x.dim() != 2:
            raise ValueError(f"{name} must have shape [N, D], got {list(x.shape)}")
        if x.numel() == 0:
            raise ValueError(f"{name} is empty: shape {list(x.shape)}")
        if x.shape != first.shape:
            raise ValueError(
                f"{first_name} and {name} must have the same shape, "
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
    dtype = accumulation_dtype(like.dtype)
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ValueError(f"temperature must be one number, got {list(temperature.shape)}")
        return temperature.reshape(()).to(device=like.device, dtype=dtype).reciprocal()
    if not abs(temperature) > 0:
        raise ValueError(f"temperature must be a number other than 0, got {temperature}")
    return torch.full((), 1.0 / temperature, dtype=dtype, device=like.device)


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
