"""Cross-entropy over the classes of a linear layer."""

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.kernels.dtypes import FLOATS, accumulation_dtype
from sslfast.kernels.linear_cross_entropy.op import linear_cross_entropy as losses_of_rows
from sslfast.kernels.linear_cross_entropy.op import weighted_linear_cross_entropy
from sslfast.losses._inputs import check_reduction

# cut-cross-entropy's choice among its ways to form gradients, of which there is one here.
_WAYS = {"filter_eps", "accum_e_fp32", "accum_c_fp32", "filter_e_grad", "filter_c_grad", "impl"}


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | str | None = None,
    reduction: str = "mean",
    shift: bool | int = 0,
    return_lse: Literal[False] = False,
    *,
    label_smoothing: float = 0.0,
    **ways: Any,
) -> Tensor: ...


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | str | None = None,
    reduction: str = "mean",
    shift: bool | int = 0,
    return_lse: bool = False,
    *,
    label_smoothing: float = 0.0,
    **ways: Any,
) -> Tensor | tuple[Tensor, Tensor]: ...


@checked
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | str | None = None,
    reduction: str = "mean",
    shift: bool | int = 0,
    return_lse: bool = False,
    *,
    label_smoothing: float = 0.0,
    **ways: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """F.cross_entropy(F.linear(hidden, weight, bias), targets), without the logits [N, V].

    Wijmans et al. 2024 (Cut Cross-Entropy, arXiv:2411.09009) have the problem and an approximate
    answer; this one is exact, and takes the arguments of cut_cross_entropy.linear_cross_entropy in
    their order. The gradients of "mean" and "sum" are formed in the forward pass, a block of rows
    at a time, 6 N V D FLOP in all; "none" and return_lse take 8. Rows that are ignored cost
    nothing on a CPU; on a GPU leave them out beforehand where they are many.

    Args:
        hidden: [..., D], the last layer's inputs.
        weight: [V, D]; V up to 256k and D up to 4096 have been tried.
        targets: int64 [...], classes in [0, V) or ignore_index.
        bias: [V] or None.
        ignore_index: the target of rows that have no loss.
        softcap: logits t become softcap tanh(t / softcap), as in Gemma 2; None: as they are. A
            string in this place is taken for the reduction, which was here before.
        reduction: "mean" (over rows that are not ignored; NaN if none is left, as in PyTorch),
            "sum" or "none" (losses in the shape of targets, 0 where ignored).
        shift: of sequences hidden [..., T, D], position t predicts targets[..., t + shift]: 1 or
            True for the next token. "none" then returns [..., T - shift].
        return_lse: return the pair (loss, lse), lse the log-sum-exp of each row's logits in the
            shape of the losses of "none", 0 where ignored, with its gradient (for a z-loss).
        label_smoothing: the share of probability spread over all classes, in [0, 1]; without
            softcap and return_lse.
        ways: filter_eps, accum_e_fp32, accum_c_fp32, filter_e_grad, filter_c_grad and impl of
            cut-cross-entropy, accepted for compatibility: gradients are always complete and added
            up in float32.

    Returns:
        The loss in float32 (float64 for float64 hidden). Under autocast hidden, and otherwise
        weight and bias, are used in autocast's dtype or that of hidden; sums are in float32.

    Raises:
        TypeError: tensors that are not of a floating dtype, targets that are not int64, an
            argument that is unknown.
        ValueError: shapes or devices that do not fit, a label_smoothing outside [0, 1] or beside
            what it does not go with, a softcap that is not positive, a shift outside [0, T).
        IndexError: a target that is neither a class nor ignore_index (on a GPU: NaN).
    """
    cap, reduction = checked_options(softcap, reduction, return_lse, label_smoothing, ways)
    _check(hidden, weight, targets, bias)
    length = targets.shape[-1]
    if not 0 <= shift < max(length, 1):
        raise ValueError(f"shift must lie in [0, {length}), the length of targets, got {shift}")
    if shift:  # ignored rows stay until the end, so that hidden is not copied
        targets = F.pad(targets[..., shift:], (0, int(shift)), value=ignore_index)
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        hidden = hidden.to(torch.get_autocast_dtype(device))
    x, y = hidden.flatten(0, -2), targets.flatten()
    tensors = x, weight, bias
    options = ignore_index, float(label_smoothing)
    needs = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in tensors]
    used = y != ignore_index
    if reduction != "none" and not return_lse and any(needs) and len(y):
        row_weight = used.to(accumulation_dtype(x.dtype))
        if reduction == "mean":
            row_weight /= row_weight.sum()
        return weighted_linear_cross_entropy(*tensors, y, row_weight, *options, *needs, cap)[0]
    losses = losses_of_rows(*tensors, y, *options, cap)
    if reduction == "none":
        loss = losses.view(targets.shape)[..., : length - shift]
    else:
        loss = losses.sum() if reduction == "sum" else losses.sum() / used.sum()
    if not return_lse:
        return loss
    lse = losses + _target_logits(x, weight, bias, y, cap).where(used, 0)
    return loss, lse.view(targets.shape)[..., : length - shift]


def _target_logits(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, softcap: float | None
) -> Tensor:
    """Every row's own target's logit [N]; of any class where the target is none."""
    dtype = accumulation_dtype(x.dtype)
    y = y.where((y >= 0) & (y < len(weight)), 0)
    logits = (x.to(dtype) * weight[y].to(x.dtype).to(dtype)).sum(1)
    if bias is not None:
        logits = logits + bias[y].to(x.dtype).to(dtype)
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def checked_options(
    softcap: float | str | None,
    reduction: str,
    return_lse: bool,
    label_smoothing: float,
    ways: dict[str, Any],
) -> tuple[float | None, str]:
    """Return softcap and reduction, or raise what linear_cross_entropy does for its options."""
    if isinstance(softcap, str):
        if reduction != "mean":
            raise TypeError(f"the reduction is given twice, as {softcap!r} and {reduction!r}")
        reduction, softcap = softcap, None
    check_reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if softcap is not None and not 0.0 < softcap < float("inf"):
        raise ValueError(f"softcap must be a positive number, or None for none, got {softcap}")
    if label_smoothing and (return_lse or softcap is not None):
        raise ValueError("label_smoothing goes with neither softcap nor return_lse")
    for name, value in ways.items():
        if name == "vocab_parallel_options":
            if value is not None:
                raise ValueError(f"{name} is not supported: every rank needs all of weight")
        elif name not in _WAYS:
            raise TypeError(f"linear_cross_entropy() got an unexpected keyword argument {name!r}")
    return None if softcap is None else float(softcap), reduction


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


class LinearCrossEntropyLoss(nn.Module):
    """nn.CrossEntropyLoss of a linear layer's outputs, without these outputs in memory.

    Drop-in for cut_cross_entropy.LinearCrossEntropy too, whose arguments are in the same order.

    Args:
        ignore_index: the target of rows that have no loss.
        softcap: logits t become softcap tanh(t / softcap); None: as they are. A string in this
            place is taken for the reduction, which was here before.
        reduction: "mean" (over rows that are not ignored), "sum" or "none".
        shift: of sequences, position t predicts targets[..., t + shift].
        return_lse: return the pair (loss, log-sum-exps of the rows' logits).
        label_smoothing: the share of probability spread over all classes, in [0, 1].
        ways: what ``sslfast.functional.linear_cross_entropy`` accepts for compatibility.

    Shapes:
        hidden [..., D], weight [V, D], targets int64 [...], bias [V] or None: the inputs and the
        parameters of the last linear layer.

    Raises:
        TypeError, ValueError, IndexError: as ``sslfast.functional.linear_cross_entropy``.
    """

    @checked
    def __init__(
        self,
        ignore_index: int = -100,
        softcap: float | str | None = None,
        reduction: str = "mean",
        shift: bool | int = 0,
        *,
        return_lse: bool = False,
        label_smoothing: float = 0.0,
        **ways: Any,
    ) -> None:
        super().__init__()
        self.softcap, self.reduction = checked_options(
            softcap, reduction, return_lse, label_smoothing, ways
        )
        self.ignore_index = ignore_index
        self.shift = shift
        self.return_lse = return_lse
        self.label_smoothing = label_smoothing
        self.ways = ways

    def forward(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the loss, with return_lse beside the log-sum-exps."""
        return linear_cross_entropy(
            hidden,
            weight,
            targets,
            bias,
            self.ignore_index,
            self.softcap,
            self.reduction,
            self.shift,
            self.return_lse,
            label_smoothing=self.label_smoothing,
            **self.ways,
        )
