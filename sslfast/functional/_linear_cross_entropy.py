"""Cross-entropy over the classes of a linear layer."""

import torch
from torch import Tensor

from sslfast._arguments import checked
from sslfast.kernels.similarity_softmax import accumulation_dtype
from sslfast.ops.linear_cross_entropy import linear_cross_entropy as losses_of_rows
from sslfast.ops.linear_cross_entropy import weighted_linear_cross_entropy

from ._common import FLOATS, check_reduction


@checked
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """F.cross_entropy(F.linear(hidden, weight, bias), targets), without the logits [N, V].

    Wijmans et al. 2024 (Cut Cross-Entropy, arXiv:2411.09009) have the problem and an approximate
    answer; this one is exact. The gradients of "mean" and "sum" are formed in the forward pass, a
    block of rows at a time, 6 N V D FLOP in all; "none" takes 8. Rows that are ignored cost
    nothing on a CPU; on a GPU leave them out beforehand where they are many.

    Args:
        hidden: [..., D], the last layer's inputs.
        weight: [V, D]; V up to 256k and D up to 4096 have been tried.
        targets: int64 [...], classes in [0, V) or ignore_index.
        bias: [V] or None.
        ignore_index: the target of rows that have no loss.
        reduction: "mean" (over rows that are not ignored; NaN if none is left, as in PyTorch),
            "sum" or "none" (losses in the shape of targets, 0 where ignored).
        label_smoothing: the share of probability spread over all classes, in [0, 1].

    Returns:
        The loss in float32 (float64 for float64 hidden). Under autocast hidden, and otherwise
        weight and bias, are used in autocast's dtype or that of hidden; sums are in float32.

    Raises:
        TypeError: tensors that are not of a floating dtype, targets that are not int64.
        ValueError: shapes or devices that do not fit, a label_smoothing outside [0, 1].
        IndexError: a target that is neither a class nor ignore_index (on a GPU: NaN).
    """
    check_reduction(reduction)
    _check(hidden, weight, targets, bias)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        hidden = hidden.to(torch.get_autocast_dtype(device))
    x, y = hidden.flatten(0, -2), targets.flatten()
    tensors = x, weight, bias
    options = ignore_index, float(label_smoothing)
    needs = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in tensors]
    if reduction == "none" or not any(needs) or not len(y):
        losses = losses_of_rows(*tensors, y, *options)
        if reduction == "none":
            return losses.view(targets.shape)
        total = losses.sum()
        return total if reduction == "sum" else total / (y != ignore_index).sum()
    row_weight = (y != ignore_index).to(accumulation_dtype(x.dtype))
    if reduction == "mean":
        row_weight /= row_weight.sum()
    return weighted_linear_cross_entropy(*tensors, y, row_weight, *options, *needs)[0]


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    given = {"hidden": hidden, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, x in given.items():
        if not isinstance(x, Tensor) or x.dtype not in FLOATS:
            what = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {what}")
        if x.device != targets.device:
            raise ValueError(f"{name} is on {x.device}, but targets are on {targets.device}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 classes, got {targets.dtype}")
    if hidden.dim() < 2 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden [..., D] and weight [V, D] must have the same D, got {list(hidden.shape)} "
            f"and {list(weight.shape)}"
        )
    if 0 in weight.shape:
        raise ValueError(f"weight is empty: shape {list(weight.shape)}")
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets must have the shape of hidden without its last dimension, "
            f"{list(hidden.shape[:-1])}, got {list(targets.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {[len(weight)]}, got {list(bias.shape)}")
